//! Looking again and again (`--watch`), as watch(1) does: on a terminal the same screen is written over, without a flicker
//! and without a trace when it ends; elsewhere whoever looks prints lines. Ctrl-C ends it with 0.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::terminal;

/// The other screen, without a cursor, and long lines end at its edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// A terminal that knows these shows what is between them at once (mode 2026); others pass them over.
const BEGIN: &str = "\x1b[?2026h";
const END: &str = "\x1b[?2026l";

/// Where the looks are shown.
pub(super) struct Screen {
    is_terminal: bool,
}

impl Screen {
    /// Takes the terminal, if stdout is one, until it is dropped or a signal ends the process.
    ///
    /// # Errors
    /// Signals cannot be listened to.
    pub fn open() -> io::Result<Self> {
        let is_terminal = io::stdout().is_terminal();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        // It ends with the process, also while an answer is waited for.
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if signals.forever().next().is_some() {
                if is_terminal {
                    write(LEAVE);
                }
                std::process::exit(0);
            }
        })?;
        if is_terminal {
            write(ENTER);
        }
        Ok(Self { is_terminal })
    }

    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows this in the place of what was shown before, as far as there is room.
    pub fn show(&self, text: &str) {
        write(&frame(text, terminal::size().map(|(rows, _)| rows)));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            write(LEAVE);
        }
    }
}

/// Each line at its place, and nothing of what stood there. A terminal would write lines below its last one over that one: it says
/// how many there are.
fn frame(text: &str, rows: Option<usize>) -> String {
    let mut lines: Vec<_> = text.lines().map(Cow::Borrowed).collect();
    let rows = rows.unwrap_or(usize::MAX).max(1);
    if lines.len() > rows {
        let more = lines.len() - rows + 1;
        lines.truncate(rows - 1);
        lines.push(format!("… {more} more lines").into());
    }
    let mut frame = BEGIN.to_owned();
    for (row, line) in lines.iter().enumerate() {
        // Writing to a String does not fail.
        let _ = write!(frame, "\x1b[{};1H{line}\x1b[K", row + 1);
    }
    frame + "\x1b[J" + END
}

/// Whether anybody reads it.
pub(super) fn print_line(text: &str) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// In one piece.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    // A terminal that is gone is looked at by nobody.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The pause between two looks.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).ok().filter(|it| SHORTEST <= *it && *it <= LONGEST);
    interval.ok_or_else(|| format!("{text:?} is no duration from 100ms to 1h, such as 2s"))
}

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_writes_over_the_one_before() {
        assert_eq!(
            frame("a\n\nb", None),
            "\x1b[?2026h\x1b[1;1Ha\x1b[K\x1b[2;1H\x1b[K\x1b[3;1Hb\x1b[K\x1b[J\x1b[?2026l"
        );
    }

    #[test]
    fn a_small_screen_says_how_much_it_does_not_show() {
        assert_eq!(frame("a\nb", Some(2)), "\x1b[?2026h\x1b[1;1Ha\x1b[K\x1b[2;1Hb\x1b[K\x1b[J\x1b[?2026l");
        assert_eq!(
            frame("a\nb\nc\nd", Some(2)),
            "\x1b[?2026h\x1b[1;1Ha\x1b[K\x1b[2;1H… 3 more lines\x1b[K\x1b[J\x1b[?2026l"
        );
        assert!(frame("a\nb", Some(1)).contains("\x1b[1;1H… 2 more lines"));
    }

    #[test]
    fn an_interval_is_bounded() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        for text in ["0s", "2h", "2", ""] {
            assert!(interval(text).unwrap_err().contains("100ms to 1h"), "{text}");
        }
    }
}
