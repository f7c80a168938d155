//! `after=<partition>:<offset>` of a query: it is answered when these records are counted, so that who writes reads what it
//! has written. An answer of the ingestor has the positions, where it is asked for them (`Prefer: return=positions`).

use std::time::Duration;

use actix_web::http::StatusCode;

use super::AdminState;
use crate::{
    config::Role,
    http::Problem,
    names::SinkName,
    position::{Offset, Partition, Position},
};

/// How long a query waits for its positions.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A partition that is not here has this part of it to come (back): a rebalance takes some seconds.
const ABSENCE: u32 = 4;
/// Queries that wait at a time: each wakes at each flush, and has its positions looked at.
pub(super) const AT_ONCE: usize = 64;
/// Partitions of one query: more than a topic has partitions, in practice.
const MOST: usize = 1000;

/// Adds the value of one `after`. Of a partition the last position is enough.
///
/// # Errors
/// One sentence that names the parameter.
pub(super) fn add(positions: &mut Vec<Position>, value: &str) -> Result<(), String> {
    let position: Position = value.parse().map_err(|why| format!("after: {why}"))?;
    if let Some(known) = positions.iter_mut().find(|known| known.partition == position.partition) {
        known.offset = known.offset.max(position.offset);
        return Ok(());
    }
    if positions.len() == MOST {
        return Err(format!(
            "after: names more than {MOST} partitions: ask for the records of fewer of them at a time"
        ));
    }
    positions.push(position);
    Ok(())
}

/// Waits until the records at all of these positions are counted, and that is durable; of none it is at once.
///
/// # Errors
/// 409 where this process does not count one of the partitions, 503 where it has not come so far by the deadline, or stands
/// still.
pub(super) async fn wait_for(state: &AdminState, positions: &[Position], deadline: Duration) -> Result<(), Problem> {
    if positions.is_empty() {
        return Ok(());
    }
    if !state.roles.contains(&Role::Aggregator.as_str()) {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            format!(
                "after: this process (roles: {}) does not count, so that it cannot wait for what is counted: ask one with \
                 the role aggregator",
                state.roles.join(", ")
            ),
        ));
    }
    let counted = &state.health.counted;
    let is_counted = |it: &Position| counted.position(it.partition).is_some_and(|at| at > it.offset);
    let missing: Vec<_> = positions.iter().filter(|it| !is_counted(it)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(problem) = halted(state, |partition| missing.iter().any(|it| it.partition == partition)) {
        return Err(problem);
    }
    let Ok(_place) = state.waits.try_acquire() else {
        return Err(Problem::unavailable(format!(
            "after: {AT_ONCE} other queries wait until records are counted: ask again in a moment"
        )));
    };
    match tokio::time::timeout(deadline, counted.wait(positions, deadline / ABSENCE)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(partition)) => Err(halted(state, |it| it == partition).unwrap_or_else(|| elsewhere(partition))),
        Err(_) => {
            let missing = positions.iter().find(|it| !is_counted(it)).unwrap_or(&positions[0]);
            Err(halted(state, |it| it == missing.partition).unwrap_or_else(|| late(state, *missing, deadline)))
        }
    }
}

/// Not here. A consumer group gives each partition to one process.
fn elsewhere(partition: Partition) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        format!(
            "after: this process does not count partition {partition} at present: ask the one whose GET /status has it in \
             \"lag\" with the sink aggregate"
        ),
    )
}

/// One of these partitions stands still.
fn halted(state: &AdminState, is_awaited: impl Fn(Partition) -> bool) -> Option<Problem> {
    let readiness = state.health.readiness();
    let halted = readiness.halted.iter().find(|it| it.sink == SinkName::Aggregate && is_awaited(it.partition))?;
    let partition = halted.partition;
    Some(Problem::unavailable(format!(
        "after: partition {partition} is not counted until an operator acts: {}; {}",
        halted.reason, halted.action
    )))
}

fn late(state: &AdminState, Position { partition, offset }: Position, deadline: Duration) -> Problem {
    let so_far = match state.health.counted.position(partition) {
        Some(at) => format!("is counted up to offset {at}, which is not"),
        None => "is being assigned to this process".to_owned(),
    };
    let lag = state.metrics.lags().into_iter().find(|it| it.sink == SinkName::Aggregate && it.partition == partition);
    let end =
        lag.zip(state.health.counted.position(partition)).map(|(lag, at)| Offset(at.0.saturating_add(lag.records)));
    let what_to_do = match end {
        Some(end) if end <= offset => {
            format!("ask again, or it is a position of another log (topic, queue.generation): this one ends at {end}")
        }
        _ => "ask again".to_owned(),
    };
    Problem::unavailable(format!(
        "after: partition {partition} {so_far}, and offset {offset} was not counted within {}: {what_to_do}",
        humantime::format_duration(deadline)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::tests::state, health::Halted};

    fn at(partition: i32, offset: u64) -> Position {
        Position { partition: Partition(partition), offset: Offset(offset) }
    }

    async fn refusal(state: &AdminState, position: Position) -> (u16, Option<u32>, String) {
        let problem = wait_for(state, &[position], Duration::from_millis(20)).await.unwrap_err();
        (problem.status.as_u16(), problem.retry_after, problem.detail.into_owned())
    }

    #[actix_rt::test]
    async fn who_cannot_be_answered_hears_why_and_whom_to_ask() {
        let state = AdminState { roles: vec!["ingestor"], ..state() };
        assert!(wait_for(&state, &[], Duration::ZERO).await.is_ok());
        let (status, retry, why) = refusal(&state, at(0, 7)).await;
        assert!(status == 409 && retry.is_none() && why.ends_with("ask one with the role aggregator"), "{why}");

        let state = AdminState { roles: vec!["consumer", "aggregator"], ..state };
        let (status, retry, why) = refusal(&state, at(0, 7)).await;
        assert!(
            status == 503
                && retry == Some(1)
                && why.contains("is being assigned to this process, and offset 7 was not"),
            "{why}"
        );
        state.health.counted.reached(Partition(0), Offset(7));
        let (status, retry, why) = refusal(&state, at(0, 7)).await;
        assert_eq!((status, retry), (503, Some(1)));
        assert_eq!(
            why,
            "after: partition 0 is counted up to offset 7, which is not, and offset 7 was not counted within 20ms: ask again"
        );
        state.metrics.set_lag(SinkName::Aggregate, "events", Partition(0), 3);
        let (_, _, why) = refusal(&state, at(0, 9)).await;
        assert!(why.ends_with("within 20ms: ask again"), "{why}");
        let (_, _, why) = refusal(&state, at(0, 10)).await;
        assert!(
            why.ends_with("or it is a position of another log (topic, queue.generation): this one ends at 10"),
            "{why}"
        );
        assert!(wait_for(&state, &[at(0, 6)], Duration::ZERO).await.is_ok());
        let (status, retry, why) = refusal(&state, at(3, 0)).await;
        assert!(status == 409 && retry.is_none() && why.contains("does not count partition 3"), "{why}");

        let (reason, action) = ("an index is in the way".to_owned(), "drop it".to_owned());
        let topic = "events".to_owned();
        state.health.halt(Halted { sink: SinkName::Aggregate, topic, partition: Partition(0), reason, action });
        let (status, _, why) = refusal(&state, at(0, 7)).await;
        assert!(status == 503 && why.ends_with("until an operator acts: an index is in the way; drop it"), "{why}");
    }

    #[actix_rt::test]
    async fn more_than_so_many_do_not_wait_and_who_need_not_does_not_care() {
        let state = AdminState { roles: vec!["aggregator"], ..state() };
        state.health.counted.reached(Partition(0), Offset(7));
        let places = state.waits.clone().acquire_many_owned(64).await.unwrap();
        let (status, retry, why) = refusal(&state, at(0, 7)).await;
        assert!(status == 503 && retry == Some(1) && why.contains("64 other queries wait"), "{why}");
        assert!(wait_for(&state, &[at(0, 6)], Duration::ZERO).await.is_ok());
        drop(places);
        let (_, _, why) = refusal(&state, at(0, 7)).await;
        assert!(why.contains("was not counted within"), "{why}");
        assert_eq!(state.waits.available_permits(), 64);
    }

    #[test]
    fn a_wrong_position_is_named() {
        let mut positions = Vec::new();
        add(&mut positions, "3:17").unwrap();
        assert_eq!(positions, [at(3, 17)]);
        let why = add(&mut positions, "17").unwrap_err();
        assert_eq!(
            why,
            "after: \"17\" is no position: write PARTITION:OFFSET, such as 0:17, as the answer to a request has it"
        );
        for (given, kept) in [("3:5", at(3, 17)), ("3:18", at(3, 18))] {
            add(&mut positions, given).unwrap();
            assert_eq!(positions, [kept], "the last position of a partition is enough");
        }
        let mut many: Vec<_> = (0..1000).map(|partition| at(partition, 0)).collect();
        add(&mut many, "999:1").unwrap();
        assert!(add(&mut many, "1000:0").unwrap_err().contains("names more than 1000 partitions"));
    }
}
