//! Rows against those of a merge that is written as plainly as can be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use super::*;
use crate::store::query::{Condition, Format};

/// By window, two fields, partition; an amount, and whose it is.
type Record = (i64, usize, usize, u8, i32, u8);

/// In the order of rows.
const FIRST: [&str; 3] = ["null", "7", "\"x\""];
const SECOND: [&str; 3] = ["null", "\"p\"", "\"q,\\\"\""];
const MINUTE: i64 = 60_000;

fn aggregate() -> AggregateConfig {
    let text = "name = \"a\"\nwindow = \"1m\"\ngroup_by = [\"f\", \"g\"]\n\
                measures = [{ sum = \"n\" }, { min = \"n\" }, { unique = \"u\" }, { top = \"u\", k = 2 }]";
    toml::from_str(text).unwrap()
}

/// The buckets of records, as a store has them.
fn buckets(records: &[Record]) -> Vec<(i64, String, u64, Vec<u8>)> {
    let plan = Plan::new(&aggregate());
    let mut buckets: BTreeMap<(i64, u8, String), Measures> = BTreeMap::new();
    for (window, first, second, partition, amount, user) in records {
        let group = format!("[{},{}]", FIRST[*first], SECOND[*second]);
        let (amount, user) = (amount.to_string(), format!("\"{user}\""));
        let value = |field: usize| Some(if plan.fields()[field] == "n" { amount.as_str() } else { user.as_str() });
        // Some have no number.
        let value = |field: usize| value(field).filter(|text| *text != "0");
        buckets.entry((*window, *partition, group)).or_default().add(&plan, value);
    }
    let bucket = |((window, _, group), measures): ((i64, u8, String), Measures)| {
        (window * MINUTE, group, measures.count, measures.more.unwrap().to_bytes())
    };
    buckets.into_iter().map(bucket).collect()
}

fn answer(query: Query, buckets: &[(i64, String, u64, Vec<u8>)]) -> Result<Rows, StoreError> {
    let aggregate = aggregate();
    let mut merger = Merger::new(query, &aggregate, &Plan::new(&aggregate));
    let (from, to) = merger.range();
    for (window_start, group, count, state) in buckets.iter().filter(|it| (from.0..to.0).contains(&it.0)) {
        let bucket = Bucket { window_start: Timestamp(*window_start), group, count: *count, state: Some(state) };
        if merger.take(bucket)? == Wanted::Nothing {
            break;
        }
    }
    merger.finish()
}

fn read(rows: Rows) -> Vec<Value> {
    serde_json::from_slice(&[b"[", &*rows.into_written(), b"]"].concat()).unwrap()
}

/// All pages.
fn pages(mut query: Query, buckets: &[(i64, String, u64, Vec<u8>)]) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let rows = answer(query.clone(), buckets).unwrap();
        query.after = rows.next().cloned();
        let page = read(rows);
        assert!(page.len() <= query.limit && (query.after.is_none() || page.len() == query.limit), "{page:?}");
        all.extend(page);
        if query.after.is_none() {
            return all;
        }
    }
}

/// What the records of a row come to.
#[derive(Default)]
struct Row {
    count: u64,
    amounts: Vec<i64>,
    users: BTreeMap<String, u64>,
}

/// The rows of records, each with its window, its group's places and its JSON.
fn expected(query: &Query, step: i64, records: &[Record]) -> Vec<Value> {
    let mut rows: BTreeMap<(i64, Vec<usize>), Row> = BTreeMap::new();
    for (window, first, second, _, amount, user) in records {
        let time = window * MINUTE;
        let values = [*first, *second];
        let text = [FIRST[*first], SECOND[*second]].map(|json| match serde_json::from_str(json).unwrap() {
            Value::String(text) => text,
            other => other.to_string(),
        });
        let is_met = |condition: &Condition| condition.values.contains(&text[condition.field]);
        if time < query.from.0 || time >= query.to.0 || !query.conditions.iter().all(is_met) {
            continue;
        }
        let start = if step == 0 { query.from.0 } else { time - time.rem_euclid(step) };
        let group = query.group_by.iter().map(|field| values[*field]).collect();
        let row = rows.entry((start, group)).or_default();
        row.count += 1;
        if *amount != 0 {
            row.amounts.push(i64::from(*amount));
        }
        *row.users.entry(user.to_string()).or_default() += 1;
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    if let Order::By { number, descending } = query.order {
        rows.sort_by_key(|(_, row)| {
            let number = match number {
                Ordered::Count => Some(row.count as i64),
                Ordered::Measure(0) => (!row.amounts.is_empty()).then(|| row.amounts.iter().sum()),
                Ordered::Measure(1) => row.amounts.iter().min().copied(),
                Ordered::Measure(_) => Some(row.users.len() as i64),
            };
            // None is behind all others.
            number.map_or((true, 0), |number| (false, if descending { -number } else { number }))
        });
    }
    let names = [("f", FIRST), ("g", SECOND)];
    let shown = |((start, group), row): ((i64, Vec<usize>), Row)| {
        let group: serde_json::Map<_, _> = query
            .group_by
            .iter()
            .zip(group)
            .map(|(field, value)| {
                let (name, values) = names[*field];
                (name.to_owned(), serde_json::from_str::<Value>(values[value]).unwrap())
            })
            .collect();
        let mut top: Vec<_> = row.users.iter().collect();
        top.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let top: Vec<_> =
            top.into_iter().take(2).map(|(user, count)| json!({ "value": user, "count": count })).collect();
        json!({
            "window_start": rows::window_start(Timestamp(start)),
            "group": group,
            "count": row.count,
            "measures": {
                "sum(n)": (!row.amounts.is_empty()).then(|| row.amounts.iter().sum::<i64>()),
                "min(n)": row.amounts.iter().min(),
                "unique(u)": row.users.len(),
                "top(u)": top,
            },
            "inexact": 0,
        })
    };
    rows.into_iter().map(shown).collect()
}

fn query() -> impl Strategy<Value = (Query, i64)> {
    let whole = Query::of(&aggregate(), Timestamp(0), Timestamp(0));
    let numbers = prop_oneof![Just(Ordered::Count), (0_usize..3).prop_map(Ordered::Measure)];
    let order = prop_oneof![
        Just(Order::Window),
        (numbers, any::<bool>()).prop_map(|(number, descending)| Order::By { number, descending }),
    ];
    let group_by = prop::sample::select(vec![vec![], vec![0], vec![1], vec![1, 0], vec![0, 1]]);
    let values = prop::sample::subsequence(vec!["null", "7", "x", "p", "q,\""], 1..4);
    let conditions = vec((0_usize..2, values), 0..2).prop_map(|conditions| {
        let condition = |(field, values): (usize, Vec<&str>)| Condition {
            field,
            values: values.iter().map(|it| (*it).to_owned()).collect(),
        };
        conditions.into_iter().map(condition).collect::<Vec<_>>()
    });
    (order, group_by, conditions, 0_i64..4, (-3_i64..3, 1_i64..4), 1_usize..7).prop_map(
        move |(order, group_by, conditions, step, (from, length), limit)| {
            let (windows, step_ms) = match step {
                0 => (Step::Whole, 0),
                step => {
                    let windows = Windows::of(&aggregate()).steps_of(Duration::from_secs(60 * step.unsigned_abs()));
                    (Step::Of(windows.unwrap()), step * MINUTE)
                }
            };
            let unit = step.max(1) * MINUTE;
            let (from, to) = (Timestamp(from * unit), Timestamp((from + length) * unit));
            (Query { from, to, step: windows, order, group_by, conditions, limit, ..whole.clone() }, step_ms)
        },
    )
}

proptest! {
    #[test]
    fn pages_put_together_are_the_rows_of_a_plain_merge(
        records in vec((-9_i64..9, 0_usize..3, 0_usize..3, 0_u8..3, -3_i32..4, 0_u8..4), 0..80),
        (query, step) in query(),
    ) {
        let buckets = buckets(&records);
        let expected = expected(&query, step, &records);
        prop_assert_eq!(pages(query.clone(), &buckets), expected.clone());
        // Within little memory, too, where there is enough for the answer.
        let small = Query { bounds: Bounds { bytes: 200_000, ..query.bounds }, limit: usize::MAX, ..query };
        prop_assert_eq!(read(answer(small, &buckets).unwrap()), expected);
    }
}

#[test]
fn a_page_behind_a_group_with_a_long_text_goes_on_behind_it() {
    let plan = Plan::default();
    let aggregate = AggregateConfig::counting("a", Duration::from_secs(60), vec!["f".to_owned()]);
    let groups: Vec<String> = (0..5).map(|n| format!("[\"{n}{}\"]", "x".repeat(2000))).collect();
    for order in [Order::Window, Order::By { number: Ordered::Count, descending: true }] {
        let mut query = Query {
            order,
            limit: 2,
            format: Format::Ndjson,
            ..Query::of(&aggregate, Timestamp(0), Timestamp(120_000))
        };
        let mut lines = Vec::new();
        loop {
            let mut merger = Merger::new(query.clone(), &aggregate, &plan);
            let (from, _) = merger.range();
            for window_start in [0, 60_000].map(Timestamp).into_iter().filter(|start| *start >= from) {
                for group in &groups {
                    merger.take(Bucket { window_start, group, count: 1, state: None }).unwrap();
                }
            }
            let rows = merger.finish().unwrap();
            query.after = rows.next().cloned();
            let text = String::from_utf8(rows.into_written()).unwrap();
            lines.extend(text.lines().map(|line| line.to_owned()));
            if query.after.is_none() {
                break;
            }
        }
        let different: BTreeSet<_> = lines.iter().collect();
        assert_eq!((lines.len(), different.len()), (10, 10), "{order:?}");
        // One whose row is gone says so.
        let group = GroupName::Hash("0".repeat(64));
        query.after = Some(Place { number: Sum::of_parts(1, 0), window_start: Timestamp(0), group });
        let mut merger = Merger::new(query.clone(), &aggregate, &plan);
        let taken = merger.take(Bucket { window_start: Timestamp(0), group: &groups[0], count: 1, state: None });
        let gone = taken.map(|_| ()).and_then(|()| merger.finish().map(|_| ()));
        assert!(matches!(&gone, Err(StoreError::TooMuch(why)) if why.starts_with("cursor:")), "{gone:?}");
    }
}

#[test]
fn what_a_query_may_cost_is_bounded_and_the_refusal_says_how_to_ask_for_less() {
    let records: Vec<Record> = (0..9).map(|n| (n, 0, 0, 0, 1, 1)).collect();
    let buckets = buckets(&records);
    let whole = Query::of(&aggregate(), Timestamp(0), Timestamp(9 * MINUTE));
    let refused = |bounds: Bounds, step: Step| match answer(Query { bounds, step, ..whole.clone() }, &buckets) {
        Err(StoreError::TooMuch(why)) => why,
        other => panic!("{other:?}"),
    };
    let of_window = || whole.step.clone();
    let why = refused(Bounds { buckets: 8, ..whole.bounds }, of_window());
    assert!(why.contains("more than 8 buckets") && why.contains("shorter range"), "{why}");
    let why = refused(Bounds { bytes: 600, ..whole.bounds }, Step::Whole);
    assert!(why.contains("where"), "{why}");
    // A page is read only as far as it goes.
    let first = Query { limit: 7, bounds: Bounds { buckets: 8, ..whole.bounds }, ..whole.clone() };
    assert_eq!(answer(first, &buckets).unwrap().count(), 7);
}

#[test]
fn many_groups_of_large_states_fit_where_they_are_as_small_as_they_stand_in_the_store() {
    let aggregate = aggregate();
    let plan = Plan::new(&aggregate);
    let mut measures = Measures::default();
    (0..300).for_each(|n| measures.add(&plan, |_| Some(["\"a\"", "1", "2.5"][n % 3])));
    let more = measures.more.unwrap();
    let (state, in_memory) = (more.to_bytes(), more.size());
    let bounds = Bounds { bytes: 1000 * (state.len() + 1000), ..Bounds::default() };
    assert!(in_memory > 3 * state.len(), "{in_memory} {}", state.len());
    let query = Query { bounds, ..Query::of(&aggregate, Timestamp(0), Timestamp(60_000)) };
    let mut merger = Merger::new(query, &aggregate, &plan);
    // Each of two partitions.
    for _ in 0..2 {
        for n in 0..1000 {
            let group = format!("[{n},null]");
            let bucket = Bucket { window_start: Timestamp(0), group: &group, count: 300, state: Some(&state) };
            merger.take(bucket).unwrap();
        }
    }
    let rows = read(merger.finish().unwrap());
    assert_eq!((rows.len(), &rows[0]["count"], &rows[0]["measures"]["unique(u)"]), (1000, &json!(600), &json!(3)));
}
