//! Work that keeps a core busy for milliseconds, off the workers, which have other connections to serve.

use std::cell::Cell;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::task::{JoinError, spawn_blocking};

/// By how much it gives way: where cores are short, a thread of the workers gets ten times as much of one. Small requests stay as
/// quick as they are beside large ones, and these still go on.
const NICE: i32 = 10;

/// Does it on one of the threads that a worker has for that.
///
/// # Errors
/// It panicked.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    spawn_blocking(|| {
        give_way();
        work()
    })
    .await
}

/// Once for each thread: Linux has a priority for each.
fn give_way() {
    thread_local!(static GIVES_WAY: Cell<bool> = const { Cell::new(false) });
    if !GIVES_WAY.replace(true) {
        let usual = getpriority_process(None).unwrap_or(0);
        // Anybody may be nicer; where that is forbidden nevertheless, it is as before.
        let _ = setpriority_process(None, usual.saturating_add(NICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn it_gives_way_once_and_nobody_else_does() {
        let usual = getpriority_process(None).unwrap();
        for _ in 0..10 {
            assert_eq!(aside(|| getpriority_process(None).unwrap()).await.unwrap(), usual + NICE);
        }
        assert_eq!(getpriority_process(None).unwrap(), usual);
    }
}
