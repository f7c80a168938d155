//! Work that keeps a core busy for milliseconds, off the workers, which have other connections to serve.

use std::{cell::Cell, sync::LazyLock, thread::available_parallelism};

use rustix::process::{getpriority_process, setpriority_process};
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// By how much it gives way: where cores are short, a thread of the workers gets ten times as much of one. Small requests stay as
/// quick as they are beside large ones, and these still go on.
const NICE: i32 = 10;

/// So much of it is done at a time, and the rest in the order in which it came: a core is left to the workers, where there are
/// several. (Giving way is not enough for them: a thread that runs is left alone for some milliseconds.)
static AT_A_TIME: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(available_parallelism().map_or(1, |cores| cores.get() - 1).max(1)));

/// Does it on one of the threads that a worker has for that.
///
/// # Errors
/// It panicked.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // It is never closed.
    let turn = AT_A_TIME.acquire().await;
    spawn_blocking(|| {
        give_way();
        // Also where nobody waits for it any more.
        let _turn = turn;
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
