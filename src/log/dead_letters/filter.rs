//! Which letters an operation is about: the same as query parameters of the endpoint, for its client, and as options of the
//! command line.

use clap::{Args, builder::TypedValueParser as _, value_parser};

use super::LettersError;
use crate::{
    moment,
    position::{Partition, Timestamp},
};

/// Selects letters; what is not set selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Filter {
    /// Found at or after it: an RFC 3339 time, or so long ago (-2h)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment)]
    pub from: Option<Timestamp>,
    /// Found before it
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment)]
    pub to: Option<Timestamp>,
    /// With this reason, such as invalid_json
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// Of records of this partition
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(i32).range(0..).map(Partition))]
    pub partition: Option<Partition>,
    /// This letter (topic/partition/offset, or topic.ingest/0/UUID); may be repeated
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// At most so many
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(u32).range(1..=100_000).map(|limit| limit as usize))]
    pub limit: Option<usize>,
    /// Those that were replayed or purged, too
    #[arg(long)]
    pub all: bool,
}

impl Filter {
    const NAMES: &str = "from, to, reason, partition, id, all and limit";
    const MAX_LIMIT: usize = 100_000;
    /// What people read, and what one operation changes.
    pub const LIST_LIMIT: usize = 100;
    pub const CHANGE_LIMIT: usize = 10_000;

    pub fn by_id(id: &str) -> Self {
        Self { ids: vec![id.to_owned()], all: true, ..Self::default() }
    }

    /// Reads query parameters.
    ///
    /// # Errors
    /// One sentence that names the parameter.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        let mut all = None;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = value.as_ref();
            let time = || moment(value).map_err(|why| format!("{name}: {value:?} {why}"));
            let twice = match name.as_ref() {
                "from" => filter.from.replace(time()?).is_some(),
                "to" => filter.to.replace(time()?).is_some(),
                "reason" => filter.reason.replace(value.to_owned()).is_some(),
                "partition" => {
                    let partition = value.parse().ok().filter(|partition| *partition >= 0);
                    let partition =
                        partition.ok_or_else(|| format!("partition: {value:?} is no partition's number"))?;
                    filter.partition.replace(Partition(partition)).is_some()
                }
                "id" => {
                    filter.ids.push(value.to_owned());
                    false
                }
                // Named alone it says so, too.
                "all" => {
                    let is_wished = match value {
                        "true" | "" => true,
                        "false" => false,
                        other => return Err(format!("all: {other:?} is neither true nor false")),
                    };
                    all.replace(is_wished).is_some()
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=Self::MAX_LIMIT).contains(limit));
                    let limit = limit
                        .ok_or_else(|| format!("limit: {value:?} is not a number from 1 to {}", Self::MAX_LIMIT))?;
                    filter.limit.replace(limit).is_some()
                }
                other => return Err(format!("{other}: unknown parameter; there are {}", Self::NAMES)),
            };
            if twice {
                return Err(format!("{name}: given twice"));
            }
        }
        Ok(Self { all: all.unwrap_or_default(), ..filter })
    }

    pub fn to_query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let texts = [
            ("from", self.from.map(Timestamp::to_rfc3339)),
            ("to", self.to.map(Timestamp::to_rfc3339)),
            ("reason", self.reason.clone()),
            ("partition", self.partition.map(|partition| partition.to_string())),
            ("all", self.all.then(|| "true".to_owned())),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                query.append_pair(name, &value);
            }
        }
        for id in &self.ids {
            query.append_pair("id", id);
        }
        query.finish()
    }

    /// For a replay: what is named is looked at in every state, so that it can be said that nothing was left to do.
    pub fn open_or_named(&self) -> Self {
        Self { all: !self.ids.is_empty(), ..self.clone() }
    }

    /// Whether it selects by nothing.
    pub fn selects_everything(&self) -> bool {
        let Self { from, to, reason, partition, ids, all: _, limit: _ } = self;
        from.is_none() && to.is_none() && reason.is_none() && partition.is_none() && ids.is_empty()
    }

    /// A correction is for one letter.
    ///
    /// # Errors
    /// There is a correction, and the filter does not name exactly one letter by its id.
    pub fn allows(&self, correction: Option<&[u8]>) -> Result<(), LettersError> {
        match (correction, self.ids.len()) {
            (None, _) | (Some(_), 1) => Ok(()),
            (Some(_), _) => Err(LettersError::Invalid(
                "a corrected value is for one letter: name that one, and no other, by its id".to_owned(),
            )),
        }
    }

    /// Whether a letter with these properties is selected, apart from its state.
    pub fn selects(&self, id: &str, time: Timestamp, reason: &str, partition: Partition) -> bool {
        self.from.is_none_or(|from| time >= from)
            && self.to.is_none_or(|to| time < to)
            && self.reason.as_deref().is_none_or(|wanted| wanted == reason)
            && self.partition.is_none_or(|wanted| wanted == partition)
            && (self.ids.is_empty() || self.ids.iter().any(|wanted| wanted == id))
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    moment::option(text).map(|at| Timestamp(at.timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_its_way_through_a_url() {
        let filter = Filter {
            from: Some(Timestamp(1_795_420_800_123)),
            to: Some(Timestamp(1_795_420_900_000)),
            reason: Some("a&b=c".to_owned()),
            partition: Some(Partition(3)),
            ids: vec!["events@1/0/7".to_owned(), "events/0/8".to_owned()],
            all: true,
            limit: Some(5),
        };
        assert_eq!(Filter::from_query(&filter.to_query()), Ok(filter));
        assert_eq!(Filter::from_query(&Filter::default().to_query()), Ok(Filter::default()));
    }

    #[test]
    fn each_bad_parameter_is_named() {
        for (query, parts) in [
            ("from=yesterday", ["from", "RFC 3339"]),
            ("to=2026-11-23T09:00:00+01:00", ["to", "%2B"]),
            ("partition=-1", ["partition", "number"]),
            ("limit=0", ["limit", "100000"]),
            ("all=perhaps", ["all", "true"]),
            ("reason=a&reason=b", ["reason", "twice"]),
            ("all&all=false", ["all", "twice"]),
            ("resaon=a", ["resaon", "unknown"]),
        ] {
            let error = Filter::from_query(query).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{query}: {error}");
        }
    }

    #[test]
    fn all_may_be_named_alone() {
        for (query, all) in [("all", true), ("all=", true), ("all=true", true), ("all=false", false), ("", false)] {
            assert_eq!(Filter::from_query(query), Ok(Filter { all, ..Filter::default() }), "{query}");
        }
    }

    #[test]
    fn a_duration_is_so_long_ago() {
        for text in ["2h", "-2h"] {
            let ago = Timestamp::now().0 - moment(text).unwrap().0;
            assert!((7_200_000..7_260_000).contains(&ago), "{text}: {ago}");
        }
    }
}
