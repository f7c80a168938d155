//! What glibc's allocator may keep.

/// Bounds it, for a process that takes events or only consumes. glibc keeps what is freed in up to eight heaps a core, and
/// takes larger and larger blocks from them.
///
/// Batches and segments then leave holes of megabytes that are never given back: with two heaps and mapped blocks a drain
/// of 16 partitions peaks at 118 MiB instead of 149, for 5 to 7 % more processor time. On the way in these bounds cost
/// processor time (docs/performance.md), probably where librdkafka allocates megabytes to compress a batch: there only the
/// heaps are bounded, to more than there are threads that are busy at the same time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn bound(ingests: bool) {
    /// Two HTTP workers, librdkafka's thread and the one that hears of acknowledgements are busy on two cores, six on four.
    const HEAPS_ON_THE_WAY_IN: i32 = 8;
    const HEAPS: i32 = 2;
    /// Blocks from here on are mapped by themselves, and go back when they are freed.
    const MAPPED: i32 = 1 << 20;
    // SAFETY: mallopt(3) takes any values, locks what it changes, and says by its result what it took.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, if ingests { HEAPS_ON_THE_WAY_IN } else { HEAPS });
        if !ingests {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn bound(_: bool) {}
