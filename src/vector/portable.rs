//! Eight bytes in a word (Mycroft's test for a zero byte; Knuth, TAOCP 7.1.3).

use super::{Few, Survey, chunk, is_special, trim};

const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

pub fn survey(bytes: &[u8]) -> Survey {
    let has_control = bytes.iter().fold(false, |any, byte| any | (*byte < 0x20));
    Survey { is_ascii: bytes.is_ascii(), has_control }
}

#[inline]
pub fn special(text: &[u8], mut at: usize) -> usize {
    while let Some(word) = chunk(text, at) {
        let found = specials(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().position(|byte| is_special(*byte)).map_or(text.len(), |offset| at + offset)
}

#[inline]
pub fn is_plain(text: &[u8]) -> bool {
    if let Some(last) = text.last_chunk() {
        let (words, _) = text.as_chunks();
        let is_plain = |word: &[u8; 8]| specials(u64::from_le_bytes(*word)) == 0;
        return words.iter().all(is_plain) && is_plain(last);
    }
    if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
        return specials(u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))) == 0;
    }
    !text.iter().any(|byte| is_special(*byte))
}

/// The highest bit of each byte that is special, up to the first of them: those above may be wrong.
#[inline]
fn specials(word: u64) -> u64 {
    let backslashes = word ^ (ONES * u64::from(b'\\'));
    let backslashes = backslashes.wrapping_sub(ONES) & !backslashes;
    // A quote becomes 0x20, a control character stays below it, all others are above.
    let turned = word ^ (ONES * 0x02);
    let others = turned.wrapping_sub(ONES * 0x21) & !turned;
    (backslashes | others) & HIGH
}

/// It is no faster than to go step by step, as who asks does then.
pub fn closed(_json: &[u8], _at: usize) -> Option<usize> {
    None
}

pub fn lines(text: &[u8], most: usize) -> Option<Vec<&[u8]>> {
    let (mut lines, mut begins) = (Vec::new(), 0);
    for end in memchr::memchr_iter(b'\n', text).chain([text.len()]) {
        let line = trim(&text[begins..end]);
        begins = end + 1;
        if !line.is_empty() {
            if lines.len() == most {
                return None;
            }
            lines.push(line);
        }
    }
    Some(lines)
}

pub fn are_twice(few: &Few, start: usize, end: usize) -> bool {
    // SAFETY: they are written up to `end`.
    let numbers: Vec<u32> = few[start..end].iter().map(|number| unsafe { number.assume_init() }).collect();
    (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at]))
}
