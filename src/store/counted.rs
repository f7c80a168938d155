//! Which aggregates are counted, and by which definitions: each by the one that its buckets were counted by, its *active*
//! version, which queries ask; beside it, while it is rebuilt, by the one that it is to have, its *shadow*.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use super::{CountedList, Query, StoreError, StoreOptions, not_configured, rebuild::Range};
use crate::{
    config::{AggregateConfig, Measure},
    measure::Plan,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Queries are answered from it.
    Active,
    /// It is being rebuilt, and takes the other one's place when it is complete.
    Shadow,
}

/// An aggregate as it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// What decides how it is counted is as in the store, the rest as it is configured.
    pub aggregate: AggregateConfig,
    pub plan: Plan,
    pub version: Version,
    /// The windows that it is counted in.
    pub range: Range,
    /// It was first counted by a release that knew no pointers: what looks like one in its `group_by` is a name.
    pub names_only: bool,
}

impl Counted {
    /// As it is configured.
    pub fn configured(aggregate: &AggregateConfig) -> Self {
        Self {
            aggregate: aggregate.clone(),
            plan: Plan::new(aggregate),
            version: Version::Active,
            range: Range::default(),
            names_only: false,
        }
    }

    pub fn is_active(&self) -> bool {
        self.version == Version::Active
    }
}

/// A version that a store knows, and where it has its buckets.
#[derive(Debug, Clone)]
pub(super) struct Known<P> {
    pub definition: Definition,
    pub place: P,
}

/// What a store knows of a configured aggregate.
#[derive(Debug)]
pub(super) struct Found<'a, P> {
    pub configured: &'a AggregateConfig,
    pub active: Known<P>,
    pub shadow: Option<(Known<P>, Range)>,
}

/// What a store counts, and where it has each of them.
#[derive(Debug, Clone)]
pub(super) struct Versions<P> {
    pub counted: CountedList,
    pub places: Vec<P>,
    compared: Compared,
}

/// What came of comparing the configured definitions with those that buckets were counted by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Compared {
    NotYet,
    /// One is another. What is known by its old definition can be asked, and nothing is counted.
    Refused(String),
    Same,
}

impl<P> Versions<P> {
    /// As the aggregates are configured, before the store was asked. `place` says where each of them is, if anybody knows.
    pub fn configured(options: &StoreOptions, place: impl Fn(&AggregateConfig) -> Option<P>) -> Arc<ArcSwap<Self>> {
        let counted = options.aggregates.iter().map(Counted::configured).collect();
        let places = options.aggregates.iter().filter_map(place).collect();
        Arc::new(ArcSwap::from_pointee(Self { counted, places, compared: Compared::NotYet }))
    }

    /// The versions of all configured aggregates.
    pub fn of(all: Vec<Found<'_, P>>) -> Self {
        let (mut counted, mut places) = (Vec::new(), Vec::new());
        let (mut shadows, mut places_of_shadows) = (Vec::new(), Vec::new());
        let mut compared = Compared::Same;
        for Found { configured, active, shadow } in all {
            // One of another definition is of another configuration.
            let shadow = shadow.filter(|(shadow, _)| shadow.definition == Definition::of(configured));
            let of_active = match active.definition.judge(configured) {
                Ok(names_only) => Some(Counted { names_only, ..Counted::configured(configured) }),
                Err(why) => {
                    let stored = active.definition.stored(configured);
                    if (shadow.is_none() || stored.is_none()) && compared == Compared::Same {
                        compared = Compared::Refused(why);
                    }
                    stored
                }
            };
            let Some(of_active) = of_active else { continue };
            counted.push(of_active);
            places.push(active.place);
            if let Some((shadow, range)) = shadow {
                shadows.push(Counted { version: Version::Shadow, range, ..Counted::configured(configured) });
                places_of_shadows.push(shadow.place);
            }
        }
        // Behind the others, which so have the indexes that they have without a shadow.
        counted.append(&mut shadows);
        places.append(&mut places_of_shadows);
        Self { counted: counted.into(), places, compared }
    }

    pub fn is_known(&self) -> bool {
        self.compared != Compared::NotYet
    }

    /// # Errors
    /// A definition is another one, and no shadow has it.
    pub fn ensure_same(&self) -> Result<(), StoreError> {
        match &self.compared {
            Compared::Same => Ok(()),
            Compared::Refused(why) => Err(StoreError::Refused(why.clone())),
            Compared::NotYet => Err(StoreError::Unavailable("the store was not asked yet what it has".to_owned())),
        }
    }

    /// For a store that has to look them up.
    pub fn without_places(self) -> Self {
        Self { places: Vec::new(), ..self }
    }

    pub fn len(&self) -> usize {
        self.counted.len()
    }

    /// # Errors
    /// What is counted is another list meanwhile.
    pub fn ensure_is(&self, counted: &CountedList) -> Result<(), StoreError> {
        if self.is_known() && !Arc::ptr_eq(&self.counted, counted) {
            let why = "what is counted has changed since: a rebuild began, or is over";
            return Err(StoreError::Unavailable(why.to_owned()));
        }
        Ok(())
    }

    /// The version that answers a query.
    ///
    /// # Errors
    /// There is none, or it has taken the place of the one that the query was made for.
    pub fn asked(&self, query: &Query) -> Result<(usize, &Counted), StoreError> {
        if !self.is_known() {
            self.ensure_same()?;
        }
        let name = &query.aggregate;
        let mut all = self.counted.iter().enumerate();
        let found = all.find(|(_, counted)| counted.is_active() && counted.aggregate.name == *name);
        let found = found.ok_or_else(|| not_configured(name))?;
        if Definition::of(&found.1.aggregate) != query.definition {
            let why = format!("the aggregate {name:?} was rebuilt by another definition in this moment: ask again");
            return Err(StoreError::Unavailable(why));
        }
        Ok(found)
    }
}

/// What decides how an aggregate is counted, as a store keeps it. A release of before kept window and `group_by` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub window_ms: i64,
    /// A JSON array of strings.
    pub group_by: String,
    /// [`AggregateConfig::definition`].
    pub more: Map<String, Value>,
}

impl Definition {
    pub fn of(aggregate: &AggregateConfig) -> Self {
        Self {
            window_ms: i64::try_from(aggregate.window.as_millis()).unwrap_or(i64::MAX),
            group_by: Value::from(aggregate.group_by.clone()).to_string(),
            more: aggregate.definition(),
        }
    }

    /// Whether a bucket of one can be one of the other, but for what is measured in it.
    pub fn has_windows_and_groups_of(&self, other: &Self) -> bool {
        let same = |key: &str| self.more.get(key) == other.more.get(key);
        self.window_ms == other.window_ms && self.group_by == other.group_by && same("time_zone") && same("pointers")
    }

    /// Whether what looks like a pointer in `group_by` is a name there.
    ///
    /// # Errors
    /// It is another definition.
    fn judge(&self, aggregate: &AggregateConfig) -> Result<bool, String> {
        let wanted = Self::of(aggregate);
        if *self == wanted {
            return Ok(false);
        }
        let pointers_alone = wanted.more.len() == 1 && aggregate.has_pointers();
        if pointers_alone && *self == (Self { more: Map::new(), ..wanted }) {
            return Ok(true);
        }
        let more = match self.more.is_empty() {
            true => String::new(),
            false => format!(" and {}", Value::Object(self.more.clone())),
        };
        Err(format!(
            "[[aggregate]] {name:?} was counted with window {}, group_by {}{more} before; rebuild it from the archive \
             (ingestd rebuild {name}), give the changed aggregate a new name, or restore the old definition",
            humantime::format_duration(Duration::from_millis(self.window_ms.unsigned_abs())),
            self.group_by,
            name = aggregate.name,
        ))
    }

    /// What is counted by this definition. What it does not have is as it is configured: the retention, and the names of
    /// measures that are configured still. `None` where it is no definition of ours.
    fn stored(&self, aggregate: &AggregateConfig) -> Option<Counted> {
        let window = Duration::from_millis(u64::try_from(self.window_ms).ok()?);
        let group_by: Value = serde_json::from_str(&self.group_by).ok()?;
        let mut written = self.more.clone();
        written.remove("pointers");
        written.insert("name".to_owned(), aggregate.name.as_str().into());
        written.insert("window".to_owned(), humantime::format_duration(window).to_string().into());
        written.insert("group_by".to_owned(), group_by);
        let measures = written.entry("measures").or_insert_with(|| json!([])).as_array_mut()?;
        measures.insert(0, Measure::Count.to_string().into());
        let mut stored: AggregateConfig = serde_json::from_value(Value::Object(written)).ok()?;
        stored.retention = aggregate.retention.filter(|kept| kept.0 >= stored.window);
        for measure in &mut stored.measures {
            if let Some(named) = aggregate.measures.iter().find(|named| named.unnamed() == *measure) {
                *measure = named.clone();
            }
        }
        let names_only = stored.has_pointers() && !self.more.contains_key("pointers");
        Some(Counted { names_only, ..Counted::configured(&stored) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Timestamp;

    fn aggregate(more: &str) -> AggregateConfig {
        toml::from_str(&format!("name = \"a\"\nwindow = \"1d\"\n{more}")).unwrap()
    }

    fn known(aggregate: &AggregateConfig, place: &'static str) -> Known<&'static str> {
        Known { definition: Definition::of(aggregate), place }
    }

    fn versions(
        configured: &AggregateConfig,
        active: &AggregateConfig,
        shadow: Option<&AggregateConfig>,
    ) -> Result<Versions<&'static str>, StoreError> {
        let shadow = shadow.map(|shadow| (known(shadow, "new"), Range::default()));
        let versions = Versions::of(vec![Found { configured, active: known(active, "old"), shadow }]);
        versions.ensure_same().map(|()| versions)
    }

    #[test]
    fn a_definition_that_is_rebuilt_is_counted_beside_the_one_that_answers() {
        let old = aggregate(
            "group_by = [\"/geo\", \"type\"]\ntime_zone = \"Europe/Berlin\"\nmax_groups = 7\n\
             filter = { type = [\"x\", 1], n = { min = 1.5 } }\nmeasures = [{ top = \"ip\", k = 3 }, { sum = \"n\" }]",
        );
        let new = aggregate("group_by = []\nretention = \"9d\"\nmeasures = [{ sum = \"n\", as = \"total\" }]");
        assert!(matches!(versions(&new, &old, None), Err(StoreError::Refused(_))));
        let refused = Versions::of(vec![Found { configured: &new, active: known(&old, "old"), shadow: None }]);
        let old_query = Query::of(&refused.counted[0].aggregate, Timestamp(0), Timestamp(1));
        assert_eq!(Definition::of(&refused.counted[0].aggregate), Definition::of(&old));
        assert!(refused.asked(&old_query).is_ok(), "the old buckets answer");
        assert!(matches!(versions(&new, &old, Some(&old)), Err(StoreError::Refused(_))), "of another configuration");
        let versions = versions(&new, &old, Some(&new)).unwrap();
        let [active, shadow] = &versions.counted[..] else { panic!("{versions:?}") };
        assert_eq!(Definition::of(&active.aggregate), Definition::of(&old));
        assert_eq!(active.aggregate.retention, new.retention);
        let names: Vec<_> = active.plan.outputs().iter().map(|output| output.name.as_str()).collect();
        assert_eq!((names, active.names_only, active.is_active()), (vec!["total", "top(ip)"], false, true));
        assert_eq!((&shadow.aggregate, shadow.version, shadow.names_only), (&new, Version::Shadow, false));
        assert_eq!(versions.places, ["old", "new"]);
        let asked = |of: &AggregateConfig| versions.asked(&Query::of(of, Timestamp(0), Timestamp(1))).map(|it| it.0);
        assert_eq!(asked(&active.aggregate).unwrap(), 0);
        assert!(matches!(asked(&new), Err(StoreError::Unavailable(_))), "it was made for another definition");
        assert!(matches!(asked(&AggregateConfig { name: "b".to_owned(), ..old }), Err(StoreError::Refused(_))));
    }

    #[test]
    fn shadows_stand_behind_all_others_and_one_of_the_same_definition_is_counted_too() {
        let (one, other) = (aggregate("group_by = []"), aggregate("group_by = [\"type\"]"));
        let range = Range { from: Some(Timestamp(5)), to: None };
        let both = vec![
            Found { configured: &one, active: known(&one, "1"), shadow: Some((known(&one, "3"), range)) },
            Found { configured: &other, active: known(&other, "2"), shadow: None },
        ];
        let versions = Versions::of(both);
        assert_eq!(versions.counted[2].range, range);
        assert_eq!(versions.places, ["1", "2", "3"]);
        assert_eq!(versions.counted.iter().map(Counted::is_active).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn names_that_look_like_pointers_are_names_until_the_rebuild_is_over() {
        let pointers = aggregate("group_by = [\"/geo\"]");
        let before = Definition { more: Map::new(), ..Definition::of(&pointers) };
        let active = Known { definition: before, place: "old" };
        let shadow = Some((known(&pointers, "new"), Range::default()));
        let versions = Versions::of(vec![Found { configured: &pointers, active, shadow }]);
        assert_eq!(versions.counted.iter().map(|it| it.names_only).collect::<Vec<_>>(), [true, false]);
    }
}
