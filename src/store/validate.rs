//! The store: where MongoDB is, and that nothing in its URL weakens what the fence rests on.

use mongodb::options::ConnectionString;

use super::mongo::DatabaseChoice;
use crate::config::{Check, StoreKind};

/// The rules of `[store]`.
pub fn validate(check: &mut Check<'_>) {
    let store = &check.config.store;
    if store.events && store.kind == StoreKind::None {
        check.fault("store.events", "needs a store, and store.kind is none");
    }
    if !check.is_mongodb() {
        return;
    }
    if store.url.is_empty() {
        return check.fault("store.url", "is needed for store.kind = \"mongodb\": mongodb://HOST:PORT");
    }
    for rule in connection(&store.url) {
        check.fault("store.url", rule);
    }
    if let Err(rule) = database(DatabaseChoice::of(store).name()) {
        if store.database.is_empty() {
            check.fault("store.url", format!("names a database, whose name {rule}"));
        } else {
            check.fault("store.database", rule);
        }
    }
}

/// What is wrong with a URL.
fn connection(url: &str) -> Vec<String> {
    if ConnectionString::parse(url).is_err() {
        if let Some(rules) = bad_options(url) {
            return rules;
        }
        // The driver's message quotes parts of the URL, any of which may be a piece of the password.
        let rule = "is not a MongoDB connection string, and not shown as it may hold a password: it must be \
                    mongodb://USER:PASSWORD@HOST:PORT/?OPTIONS with user and password percent-encoded";
        return vec![rule.to_owned()];
    }
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let options = query.split('&').filter_map(|option| option.split_once('='));
    options.filter_map(|(name, value)| weakens(name, value)).collect()
}

/// What is wrong with the options of a URL that is right without them. `None` where a part of them may be a password.
fn bad_options(url: &str) -> Option<Vec<String>> {
    let (before, query) = url.split_once('?')?;
    if query.contains('@') || ConnectionString::parse(before).is_err() {
        return None;
    }
    let mut rules = Vec::new();
    for option in query.split('&') {
        let (name, value) = option.split_once('=')?;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        let Err(error) = ConnectionString::parse(format!("mongodb://host/?{name}={value}")) else { continue };
        let message = error.to_string();
        if !message.contains("is an invalid option") {
            // The value stays untold: it may be a secret.
            rules.push(format!("its option {name} has a value that the driver does not take"));
            continue;
        }
        let near = message.split_once("similar name exists: ").map(|(_, near)| near);
        // Labels of the error follow.
        let near = near.and_then(|near| near.split(|c: char| !c.is_ascii_alphanumeric()).next());
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        rules.push(format!("its option {name} is none that the driver knows{near}"));
    }
    (!rules.is_empty()).then_some(rules)
}

/// The driver takes names in any case, and the values of these as they are written.
fn weakens(name: &str, value: &str) -> Option<String> {
    const WRITES: &str = "buckets are written with w=majority and journal=true, or an acknowledged count could be lost";
    let given = |why: &str| Some(format!("its option {name}={value} is refused: {why}"));
    match (name.to_ascii_lowercase().as_str(), value) {
        ("w", "majority") | ("journal" | "j", "true") => None,
        ("readpreference", value) if value.eq_ignore_ascii_case("primary") => None,
        ("w" | "journal" | "j", _) => given(WRITES),
        ("wtimeoutms" | "wtimeout", _) => given("aggregator.timeout bounds a write"),
        ("readpreference" | "readpreferencetags" | "maxstalenessseconds", _) => {
            given("fences are read on the primary, or a bucket could be counted twice")
        }
        ("readconcernlevel", "majority" | "linearizable") => None,
        ("readconcernlevel", _) => given("fences are read with majority, or a bucket could be counted twice"),
        _ => None,
    }
}

/// <https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions>
fn database(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 63 || name.contains(|c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c)) {
        return Err("must be 1 to 63 bytes without spaces, dots and / \\ \" $ * < > : | ? (MongoDB's rule)".to_owned());
    }
    if ["admin", "local", "config"].contains(&name) {
        return Err("is MongoDB's own database".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{StoreKind, errors_by};

    fn with(url: &str) -> Vec<String> {
        errors_by(&[validate], |config| {
            config.store.kind = StoreKind::Mongodb;
            config.store.url = url.to_owned();
        })
    }

    #[test]
    fn options_that_weaken_writes_or_reads_are_refused_by_name() {
        for bad in [
            "w=1",
            "w=0",
            "journal=false",
            "readPreference=secondary",
            "READPREFERENCE=nearest",
            "wtimeoutMS=5",
            "readConcernLevel=local",
            "readConcernLevel=Majority",
        ] {
            let errors = with(&format!("mongodb://127.0.0.1:27017/?{bad}"));
            let name = bad.split('=').next().unwrap();
            assert!(errors.len() == 1 && errors[0].contains(&format!("option {name}=")), "{bad}: {errors:?}");
        }
        for good in [
            "w=majority&journal=true",
            "readPreference=primary&readConcernLevel=majority",
            "replicaSet=rs0&retryWrites=false",
        ] {
            assert_eq!(with(&format!("mongodb://127.0.0.1:27017,b:2/?{good}")), [""; 0], "{good}");
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_its_password() {
        assert!(with("")[0].contains("is needed"));
        for bad in [
            "hunter2",
            "127.0.0.1:hunter2",
            "http://x",
            "mongodb://app:hun:ter2@x",
            "mongodb://app:p/hunter2@x",
            "mongodb:/app:hunter2@x",
            "mongodb://app:hunter2",
            "mongodb://app:secret@x/?hunter2",
            "mongodb://app:secret@x/?connectTimeoutMS=hunter2",
        ] {
            let errors = with(bad);
            assert_eq!(errors.len(), 1, "{bad}");
            assert!(!errors[0].contains("ter2"), "{errors:?}");
        }
        assert_eq!(with("mongodb://app:secret@db.example.com/?authSource=admin"), [""; 0]);
    }

    #[test]
    fn an_option_that_the_driver_does_not_take_is_named_and_its_value_is_not() {
        let user = "mongodb://app:secret@x";
        let errors = with(&format!("{user}/?replicaSte=rs0&connectTimeoutMS=hunter2&retryWrites=true"));
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("option replicaSte is none") && errors[0].contains("did you mean replicaset?"));
        assert!(errors[1].contains("option connectTimeoutMS has a value") && !errors[1].contains("ter2"), "{errors:?}");
        assert!(with(&format!("{user}/?nonsense=1"))[0].contains("option nonsense is none"));
        // A question mark that was not percent-encoded ends the hosts: what follows may be the password's rest.
        for bad in ["mongodb://app:27017?hun=ter2@x/", "mongodb://app:27017?hun=ter2&b@x/?retryWrites=true"] {
            assert!(with(bad)[0].contains("is not a MongoDB connection string"), "{bad}");
        }
    }

    #[test]
    fn the_database_of_the_url_is_checked_where_it_is_used() {
        let long = format!("mongodb://x/{}", "d".repeat(64));
        assert!(with(&long)[0].contains("store.url") && with(&long)[0].contains("names a database"));
        assert_eq!(with("mongodb://x/admin?authSource=admin"), [""; 0]);
    }

    #[test]
    fn the_database_has_a_name_that_mongodb_takes() {
        assert_eq!(database("ingestd"), Ok(()));
        for bad in ["", "a.b", "a b", "$a", "admin", &"x".repeat(64)] {
            assert!(database(bad).is_err(), "{bad}");
        }
    }
}
