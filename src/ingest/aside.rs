//! Work that keeps a core busy for milliseconds, off the workers, which have other connections to serve.

use std::{cell::Cell, sync::LazyLock, thread::available_parallelism};

use rustix::process::{getpriority_process, setpriority_process};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::{JoinError, spawn_blocking},
};

/// By how much it gives way: where cores are short, a thread of the workers gets ten times as much of one. Small requests stay as
/// quick as they are beside large ones, and these still go on.
const NICE: i32 = 10;

/// So much of each size is done at a time, and the rest in the order in which it came: a core is left to the workers, where there
/// are several. (Giving way is not enough for them: a thread that runs is left alone for some milliseconds.) What takes some
/// milliseconds does not wait behind what takes many.
static LARGE: LazyLock<Semaphore> = LazyLock::new(turns);
static SMALL: LazyLock<Semaphore> = LazyLock::new(turns);

fn turns() -> Semaphore {
    Semaphore::new(available_parallelism().map_or(1, |cores| cores.get() - 1).max(1))
}

/// The right to do it now.
pub struct Turn {
    _permit: Option<SemaphorePermit<'static>>,
}

impl Turn {
    /// Waits for one. Whoever calls it has a deadline for that.
    pub async fn of(is_large: bool) -> Self {
        let turns = if is_large { &LARGE } else { &SMALL };
        // It is never closed.
        Self { _permit: turns.acquire().await.ok() }
    }

    /// At once, for what is bounded by work that had its turn.
    pub fn now() -> Self {
        Self { _permit: None }
    }
}

/// Does it on one of the threads that a worker has for that.
///
/// # Errors
/// It panicked.
pub async fn aside<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
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
    use std::time::Duration;

    use super::*;

    #[actix::test]
    async fn it_gives_way_once_and_nobody_else_does() {
        let usual = getpriority_process(None).unwrap();
        for _ in 0..10 {
            assert_eq!(aside(Turn::now(), || getpriority_process(None).unwrap()).await.unwrap(), usual + NICE);
        }
        assert_eq!(getpriority_process(None).unwrap(), usual);
    }

    #[actix::test]
    async fn what_is_small_does_not_wait_behind_what_is_large() {
        let mut held = Vec::new();
        while let Ok(turn) = tokio::time::timeout(Duration::from_millis(50), Turn::of(true)).await {
            held.push(turn);
        }
        assert!(!held.is_empty());
        let small = Turn::of(false).await;
        assert_eq!(aside(small, || 7).await.unwrap(), 7);
        drop(held);
        Turn::of(true).await;
    }
}
