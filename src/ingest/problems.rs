//! What requests are refused with as a whole, for reasons that are not theirs: each says whether anything is stored, and when to
//! come again.

use super::replies::RETRY_AFTER_QUEUE;
use crate::{health::Closed, http::Problem, log::NotTaken};

/// New events are refused at present.
pub fn refused_by_gate(closed: Closed, why: &str) -> Problem {
    let (seconds, what) = match closed {
        // Another daemon, or this one restarted, is there as soon as a load balancer or systemd has noticed.
        Closed::Draining => (5, "stopping"),
        // Uploads and trimming, or an operator, have to free the disk first.
        Closed::DiskFull => (30, "the disk is too full"),
        // A broker's election or restart takes seconds.
        Closed::QueueUnavailable => (5, "the queue cannot be reached"),
        Closed::Starting => (1, "starting"),
    };
    let problem = unavailable(seconds, format!("no events are accepted at present: {what} ({why})"));
    Problem { closing: closed == Closed::Draining, ..problem }
}

pub fn not_taken(why: NotTaken) -> Problem {
    match why {
        NotTaken::Busy => {
            Problem::unavailable("too many requests wait for the queue; nothing of this request was stored: try again")
        }
        // A panicked producer is back after a back-off that begins at a fraction of a second.
        NotTaken::Restarting => {
            Problem::unavailable("the producer is being restarted; nothing of this request was stored")
        }
    }
}

/// Nothing of its events was sent to the log by then.
pub fn not_kept(why: &str) -> Problem {
    let detail = format!(
        "what is wrong of this request could not be kept as dead letters (event.on_invalid): {why}; none of its events was \
         stored: send it again later"
    );
    unavailable(RETRY_AFTER_QUEUE, detail)
}

/// The letters of a request stand, whatever became of its events.
pub fn beside_letters(problem: Problem, letters: usize) -> Problem {
    if letters == 0 {
        return problem;
    }
    let detail = format!(
        "{} (but for what is wrong of it: {letters} dead letter(s) are kept already, and once more when it is sent again)",
        problem.detail
    );
    Problem { detail: detail.into(), ..problem }
}

pub fn refused(reason: &str) -> Problem {
    unavailable(RETRY_AFTER_QUEUE, format!("{reason}; nothing of this request was stored: send it again later"))
}

pub fn unknown(reason: &str) -> Problem {
    let detail = format!(
        "{reason}; it is not known which events of this request were stored: sending it again may store events twice, \
         with the same id where the client sent one"
    );
    unavailable(RETRY_AFTER_QUEUE, detail)
}

fn unavailable(retry_after: u32, detail: String) -> Problem {
    Problem { retry_after: Some(retry_after), ..Problem::unavailable(detail) }
}

pub fn not_allowed(allow: &'static str) -> Problem {
    Problem::not_allowed(allow, format!("this path takes {allow} only"))
}
