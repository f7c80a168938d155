//! The binary; everything it does is in the library, but for the allocator, which a program chooses once.

use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
mod heap {
    use tikv_jemallocator::Jemalloc;

    /// For librdkafka, too: most of what it allocates for an event is freed by another thread, which glibc's allocator
    /// pays for with locks (docs/performance.md).
    #[global_allocator]
    static HEAP: Jemalloc = Jemalloc;

    /// How jemalloc is set; the environment's `MALLOC_CONF` comes after it.
    ///
    /// Two arenas were as fast, on two cores, as the eight that it makes for them, and hold less that is free. A thread
    /// keeps at most 32 free blocks of a size, up to 8 KiB each, because of the daemon's forty threads most sleep. What
    /// is free goes back to the system within a second, by a thread of jemalloc's: without it a daemon that falls quiet
    /// after a burst keeps the burst's memory, and with five seconds it lets a drain of many partitions peak higher.
    // SAFETY: it is what jemalloc looks for under this name: a pointer, its length is not read, to a text that ends with
    // NUL.
    #[unsafe(export_name = "malloc_conf")]
    static HEAP_CONF: &[u8] = b"narenas:2,tcache_nslots_small_max:32,lg_tcache_max:13,dirty_decay_ms:1000,\
        background_thread:true,max_background_threads:1\0";
}

fn main() -> ExitCode {
    ingestd::cli::main()
}
