//! Text that quotes what came from outside, on a terminal: nothing of it drives the terminal, or turns what is read around.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Control characters (also C1, such as CSI in one), and those that change the direction of what stands around them.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// In one line.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// Line by line.
pub(super) fn harmless(text: &str) -> String {
    text.trim_end().lines().map(one_line).collect::<Vec<_>>().join("\n")
}

/// The same JSON: what is harmful and no space between its parts stands in strings alone, where it may be written by its number.
pub(super) fn harmless_json(json: &str) -> String {
    let mut harmless = String::with_capacity(json.len());
    for c in json.trim_end().chars() {
        if is_harmful(c) && !c.is_ascii_whitespace() {
            // Writing to a String does not fail.
            let _ = write!(harmless, "\\u{:04x}", u32::from(c));
        } else {
            harmless.push(c);
        }
    }
    harmless
}

/// As it is, for programs; what a person looks at is harmless.
pub(super) fn for_stdout(text: String) -> String {
    if io::stdout().is_terminal() { harmless(&text) } else { text }
}

/// How many lines and columns the terminal has; `None` where that is not known.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    let (rows, columns) = (usize::from(size.ws_row), usize::from(size.ws_col));
    (rows > 0 && columns > 0).then_some((rows, columns))
}

/// How many of a terminal's cells it takes: a Chinese character has two, a combining accent none.
pub(super) fn cells(text: &str) -> usize {
    text.width()
}

/// At most so many cells, and a sign where something is left out.
pub(super) fn cut(text: &str, longest: usize) -> String {
    if cells(text) <= longest {
        return text.to_owned();
    }
    let mut room = longest.saturating_sub(1);
    let fits = |c: &char| match room.checked_sub(c.width().unwrap_or_default()) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_does_not_drive_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\n\u{9b}c\u{7f}"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}");
        assert_eq!(one_line("a\u{202e}b\u{2066}c"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(harmless("ä,b\r\nc\u{1b},d\r\n"), "ä,b\nc\u{fffd},d");
    }

    #[test]
    fn harmless_json_is_the_same() {
        let json = "{\n\t\"a\u{9b}\u{7f}\": \"\u{202e}ä\\u001b\"}\n";
        let harmless = harmless_json(json);
        assert_eq!(harmless, "{\n\t\"a\\u009b\\u007f\": \"\\u202eä\\u001b\"}");
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&harmless), value(json));
    }

    #[test]
    fn widths_are_those_of_cells() {
        assert_eq!((cells("日本"), cells("e\u{301}"), cells("ab")), (4, 1, 2));
        assert_eq!(
            (cut("日本語", 5).as_str(), cut("日本語", 6).as_str(), cut("abc", 2).as_str()),
            ("日本…", "日本語", "a…")
        );
    }
}
