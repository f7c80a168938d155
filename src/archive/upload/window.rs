//! How many uploads run at the same time: one at first, one more with each that the store answered, one again when it did
//! not, or has not been asked for a while.
//!
//! A store that does not answer then holds one segment in memory instead of `upload.max_parallel`, and one that comes back
//! is not met by all partitions at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// An answer says nothing any more about the store when it is so old.
const STALE: Duration = Duration::from_secs(10);

pub(super) struct Window {
    permits: Semaphore,
    most: usize,
    stale: Duration,
    state: Mutex<State>,
}

struct State {
    /// Uploads that may run.
    open: usize,
    /// Turns under way beyond that: given back, they are not given out again.
    surplus: usize,
    answered: Option<Instant>,
}

impl Window {
    /// Opens to `most` uploads, at least one.
    pub fn new(most: usize) -> Self {
        let state = State { open: 1, surplus: 0, answered: None };
        Self { permits: Semaphore::new(1), most: most.max(1), stale: STALE, state: Mutex::new(state) }
    }

    /// Waits for a turn, first come, first served.
    pub async fn turn(&self) -> Turn<'_> {
        {
            let mut state = self.state.lock();
            // One that takes long is no silence.
            let quiet = self.permits.available_permits() == state.open;
            if quiet && state.answered.is_none_or(|at| at.elapsed() >= self.stale) {
                self.shut(&mut state);
            }
        }
        // An error says that it was closed, which it never is.
        Turn { window: self, permit: self.permits.acquire().await.ok() }
    }

    /// The store answered.
    pub fn answered(&self) {
        let mut state = self.state.lock();
        state.answered = Some(Instant::now());
        if state.open == self.most {
            return;
        }
        state.open += 1;
        match state.surplus {
            0 => self.permits.add_permits(1),
            _ => state.surplus -= 1,
        }
    }

    /// It did not.
    pub fn failed(&self) {
        self.shut(&mut self.state.lock());
    }

    /// To one upload; what is under way goes on.
    fn shut(&self, state: &mut State) {
        let excess = state.open - 1;
        state.surplus += excess - self.permits.forget_permits(excess);
        state.open = 1;
    }
}

/// One upload under way.
pub(super) struct Turn<'w> {
    window: &'w Window,
    permit: Option<SemaphorePermit<'w>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        let Some(permit) = self.permit.take() else { return };
        if state.surplus > 0 {
            state.surplus -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::FutureExt as _;

    use super::*;

    impl Window {
        /// As many as it gives out now.
        fn turns(&self) -> Vec<Turn<'_>> {
            std::iter::from_fn(|| self.turn().now_or_never()).collect()
        }
    }

    #[test]
    fn it_opens_with_each_answer_and_shuts_when_there_is_none() {
        let mut window = Window::new(3);
        assert_eq!(window.turns().len(), 1);
        window.answered();
        assert_eq!(window.turns().len(), 2);
        window.answered();
        window.answered();
        assert_eq!(window.turns().len(), 3, "no more than the most");
        window.failed();
        assert_eq!(window.turns().len(), 1);
        window.answered();
        assert_eq!(window.turns().len(), 2);
        window.stale = Duration::ZERO;
        assert_eq!(window.turns().len(), 1, "the last answer is old");
    }

    #[tokio::test]
    async fn what_is_under_way_when_it_shuts_counts() {
        let window = Window::new(4);
        (0..3).for_each(|_| window.answered());
        let mut four = window.turns();
        assert_eq!(four.len(), 4);
        window.failed();
        let mut next = Box::pin(window.turn());
        for _ in 0..3 {
            four.pop();
            assert!(futures::poll!(&mut next).is_pending(), "one is still under way");
        }
        four.pop();
        assert!(matches!(futures::poll!(&mut next), Poll::Ready(_)));
    }

    #[test]
    fn an_answer_before_what_was_under_way_ends_opens_it_all_the_same() {
        let window = Window::new(4);
        (0..3).for_each(|_| window.answered());
        let four = window.turns();
        window.failed();
        window.answered();
        drop(four);
        assert_eq!(window.turns().len(), 2);
    }

    #[test]
    fn an_upload_that_takes_long_is_no_silence() {
        let window = Window { stale: Duration::ZERO, ..Window::new(2) };
        let first = window.turn().now_or_never();
        assert!(first.is_some());
        window.answered();
        assert!(window.turn().now_or_never().is_some(), "beside the one under way");
    }
}
