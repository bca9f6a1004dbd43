//! Places where a test may let the process die, as `kill -9` would. Release builds have none.

/// Ends the process here when the environment variable `EMBERD_FAIL` names this place: `NAME`, or `NAME:3` for the third
/// time that it is reached.
pub fn point(name: &str) {
    if cfg!(debug_assertions) {
        check(name);
    }
}

fn check(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("EMBERD_FAIL").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicI64::new(times.parse().ok()?)))
    });
    if let Some((place, left)) = wanted
        && place == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        // No destructor runs and nothing is flushed.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}
