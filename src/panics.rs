//! Panics that were caught, and those that tests ask for.

/// What a panic said.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Whether a test has asked for this fault since this was asked last. Only in builds with debug assertions: a release has
/// neither this code nor the variable.
///
/// Where the environment variable `INGESTD_PANICS` names a folder, a fault is asked for by a file of its name there. The
/// file is taken away, so that each gives one.
#[cfg(debug_assertions)]
pub fn asked_for(fault: &str) -> bool {
    static FOLDER: std::sync::LazyLock<Option<std::path::PathBuf>> =
        std::sync::LazyLock::new(|| std::env::var_os("INGESTD_PANICS").map(Into::into));
    FOLDER.as_ref().is_some_and(|folder| std::fs::remove_file(folder.join(fault)).is_ok())
}
