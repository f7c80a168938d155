//! What `GET /v1/aggregates` answers: each aggregate as it is defined, and how exact its measures are.

use serde_json::{Map, Value, json};

use crate::{
    config::{AggregateConfig, Function, Measure},
    measure,
    store::Counted,
};

pub fn list(counted: &[Counted]) -> Value {
    let active = counted.iter().filter(|counted| counted.is_active());
    let aggregates: Vec<Value> = active.map(|counted| describe(&counted.aggregate)).collect();
    json!({ "aggregates": aggregates })
}

fn describe(aggregate: &AggregateConfig) -> Value {
    let mut labels: Vec<String> = aggregate.measures.iter().map(ToString::to_string).collect();
    // Every row has it.
    if !aggregate.measures.contains(&Measure::Count) {
        labels.insert(0, Measure::Count.to_string());
    }
    let mut described = json!({
        "name": aggregate.name,
        "window": humantime::format_duration(aggregate.window).to_string(),
        "group_by": aggregate.group_by,
        "measures": labels,
        "max_groups": aggregate.max_groups,
    });
    let about: Map<_, _> = aggregate.measures.iter().filter_map(about).collect();
    if !about.is_empty() {
        described["about"] = about.into();
    }
    if let Some(zone) = &aggregate.time_zone {
        described["time_zone"] = json!(zone);
    }
    if !aggregate.filter.is_empty() {
        described["filter"] = json!(aggregate.filter);
    }
    if let Some(retention) = aggregate.retention {
        described["retention"] = humantime::format_duration(retention.0).to_string().into();
    }
    described
}

/// What a label stands for.
fn about(measure: &Measure) -> Option<(String, Value)> {
    let Measure::Of(of) = measure else { return None };
    let mut about = json!({ "function": of.function.name(), "field": of.field });
    match of.function {
        Function::Unique => about["relative_error"] = measure::RELATIVE_ERROR.into(),
        Function::Top(k) => {
            about["k"] = k.into();
            about["error"] = measure::error_of_top(k).into();
        }
        Function::Sum | Function::Min | Function::Max | Function::Avg => {}
    }
    Some((measure.to_string(), about))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn an_aggregate_is_listed_with_what_differs_from_the_defaults_and_what_its_measures_are() {
        let text = "name = \"a\"\nwindow = \"1d\"\ntime_zone = \"Europe/Berlin\"\ngroup_by = [\"type\"]\nretention = \"30d\"\n\
                    filter = { type = [\"x\"] }\nmeasures = [{ sum = \"/amount\" }, \"count\", { unique = \"user\", as = \"users\" }, { top = \"ip\", k = 3 }]";
        let mut config = Config::default();
        config.aggregate.push(toml::from_str(text).unwrap());
        let listed = list(&config.aggregate.iter().map(Counted::configured).collect::<Vec<_>>());
        assert_eq!(
            listed["aggregates"][0],
            json!({ "name": "events_by_type", "window": "1m", "group_by": ["client_id", "type"], "measures": ["count"], "max_groups": 10_000 })
        );
        assert_eq!(
            listed["aggregates"][1],
            json!({
                "name": "a", "window": "1day", "time_zone": "Europe/Berlin", "group_by": ["type"], "filter": { "type": ["x"] },
                "measures": ["sum(/amount)", "count", "users", "top(ip)"], "max_groups": 10_000, "retention": "30days",
                "about": {
                    "sum(/amount)": { "function": "sum", "field": "/amount" },
                    "users": { "function": "unique", "field": "user", "relative_error": 0.017 },
                    "top(ip)": { "function": "top", "field": "ip", "k": 3, "error": 3.5 / 256.0 },
                },
            })
        );
    }
}
