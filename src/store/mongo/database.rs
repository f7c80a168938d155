//! Which database the store is kept in, and its commands.

use std::{fmt, sync::Arc};

use mongodb::{
    Client, Collection, Database,
    bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc},
    options::{CollectionOptions, ConnectionString, ReadConcern},
};

use parking_lot::Mutex;

use super::{
    Failure, Remembered, SOURCES, primary,
    reply::{WriteReply, code},
};
use crate::{
    config::StoreConfig,
    store::{CountedList, StoreOptions, Versions},
};

/// What the configuration says of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseChoice {
    Fixed(String),
    /// The URL's, where [`DatabaseChoice::DEFAULT`] holds nothing of this topic: earlier releases had everything there,
    /// whatever the URL said, and so may a neighbour.
    OfUrl(String),
}

impl DatabaseChoice {
    pub const DEFAULT: &str = "ingestd";
    /// MongoDB's own. In a URL they say only where the user is looked up.
    pub const SYSTEM: [&str; 3] = ["admin", "local", "config"];

    /// Of `store.database` and `store.url`.
    pub fn of(store: &StoreConfig) -> Self {
        if !store.database.is_empty() {
            return Self::Fixed(store.database.clone());
        }
        let of_url = ConnectionString::parse(&store.url).ok().and_then(|url| url.default_database);
        match of_url.filter(|name| name != Self::DEFAULT && !Self::SYSTEM.contains(&name.as_str())) {
            Some(name) => Self::OfUrl(name),
            None => Self::Fixed(Self::DEFAULT.to_owned()),
        }
    }

    /// The one that is meant.
    pub fn name(&self) -> &str {
        match self {
            Self::Fixed(name) | Self::OfUrl(name) => name,
        }
    }

    /// The one that is used. Asks the server where the URL names it.
    pub(super) async fn settle(&self, client: &Client, topic: &str) -> Result<String, Failure> {
        let Self::OfUrl(name) = self else { return Ok(self.name().to_owned()) };
        if holds(client, name, topic).await? || !holds(client, Self::DEFAULT, topic).await? {
            return Ok(name.clone());
        }
        tracing::warn!(
            "database {:?} of MongoDB holds aggregates from before and stays in use, though store.url names {name:?}: \
             set store.database to the one that is meant",
            Self::DEFAULT,
        );
        Ok(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for DatabaseChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(name) => write!(f, "database {name}"),
            Self::OfUrl(name) => {
                write!(f, "database {name} (or {}, if that holds aggregates from before)", Self::DEFAULT)
            }
        }
    }
}

/// The database that is used.
pub(super) struct StoreDatabase {
    pub database: Database,
    pub options: Arc<StoreOptions>,
    pub versions: Arc<Versions<String>>,
    pub remembered: Arc<Mutex<Remembered>>,
}

impl StoreDatabase {
    /// What indexes of aggregates mean.
    pub fn ensure_is(&self, counted: &CountedList) -> Result<(), Failure> {
        self.versions.ensure_is(counted).map_err(Failure::Store)
    }

    pub fn write_concern(&self) -> Document {
        // With a time limit of its own, so that statements whose caller has given up do not pile up in the server.
        let timeout = i64::try_from(self.options.timeout.as_millis()).unwrap_or(i64::MAX);
        doc! { "w": "majority", "j": true, "wtimeout": timeout }
    }

    /// Runs a command that writes, on the primary.
    pub async fn command(&self, mut command: Document) -> Result<Document, Failure> {
        command.insert("writeConcern", self.write_concern());
        Ok(self.database.run_command(command).selection_criteria(primary()).await?)
    }

    pub async fn write(&self, command: Document) -> Result<WriteReply, Failure> {
        Ok(WriteReply::read(&self.command(command).await?))
    }

    /// Updates documents, each by its own statement, in any order.
    pub async fn update(&self, collection: &str, updates: RawArrayBuf) -> Result<WriteReply, Failure> {
        let concern = RawDocumentBuf::try_from(&self.write_concern()).map_err(mongodb::error::Error::from)?;
        let command = rawdoc! { "update": collection, "updates": updates, "ordered": false, "writeConcern": concern };
        Ok(WriteReply::read(&self.database.run_raw_command(command).selection_criteria(primary()).await?))
    }

    /// A collection, of which what cannot be rolled back any more is read.
    pub fn majority(&self, collection: &str) -> Collection<Document> {
        let options = CollectionOptions::builder().read_concern(ReadConcern::majority()).build();
        self.database.collection_with_options(collection, options)
    }
}

/// Whether events of this topic, of any generation, were counted in the database.
async fn holds(client: &Client, database: &str, topic: &str) -> Result<bool, Failure> {
    // The ids are `topic/partition` and `topic@generation/partition`; the end is the character after.
    let within =
        |from: char, to: char| doc! { "_id": { "$gte": format!("{topic}{from}"), "$lt": format!("{topic}{to}") } };
    let find = doc! {
        "find": SOURCES,
        "filter": { "$or": [within('/', '0'), within('@', 'A')] },
        "limit": 1,
    };
    let found = client.database(database).run_command(find).selection_criteria(primary()).await;
    match found.map_err(Failure::from) {
        Ok(reply) => Ok(!first_batch(&reply).is_empty()),
        // Who may not look into it has written nothing there.
        Err(failure) if failure.refusal().is_some_and(|why| why.code == code::UNAUTHORIZED) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// The documents of a reply that has them all.
pub(super) fn first_batch(reply: &Document) -> Vec<&Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.map_or_else(|_| Vec::new(), |batch| batch.iter().filter_map(|document| document.as_document()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_the_url_is_meant_unless_one_is_given_or_it_is_mongodbs_own() {
        let fixed = |name: &str| DatabaseChoice::Fixed(name.to_owned());
        let of = |database: &str, url: &str| {
            let (database, url) = (database.to_owned(), url.to_owned());
            DatabaseChoice::of(&StoreConfig { database, url, ..StoreConfig::default() })
        };
        assert_eq!(of("", "mongodb://a/shop?replicaSet=rs0"), DatabaseChoice::OfUrl("shop".to_owned()));
        assert_eq!(of("mine", "mongodb://a/shop"), fixed("mine"));
        for url in
            ["mongodb://a", "mongodb://a/", "mongodb://a/?w=majority", "mongodb://u:p@a/admin", "mongodb://a/ingestd"]
        {
            assert_eq!(of("", url), fixed("ingestd"), "{url}");
        }
    }
}
