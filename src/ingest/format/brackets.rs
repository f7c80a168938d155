//! Finds ends also in what is not valid JSON, or nested too deeply for an event: a string ends at its quote, whatever is in it, a
//! bracket where one of its kind closes it, and nothing else is looked at. So an array is cut into its elements, and what is
//! wrong with one is that one's fault alone. What is right with it is told where each is read.

use crate::vector::{self, trim};

/// The elements of an array as they stand between its commas, without the white space around them, and where its closing bracket is.
#[derive(Debug, PartialEq, Eq)]
pub struct Elements<'a> {
    pub elements: Vec<&'a [u8]>,
    /// Behind the bracket.
    pub end: usize,
}

/// Why an array cannot be cut. The element is the one that is under way, by its index and its first byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Uncut {
    TooMany,
    /// A string or a bracket is open at the end.
    NoEnd {
        element: usize,
        begins: usize,
    },
    /// A bracket is closed by one of the other kind.
    Unbalanced {
        element: usize,
        begins: usize,
    },
}

/// Cuts `array`, which begins with a bracket, at the commas that stand in no other bracket and in no string. At most
/// `max_elements`.
///
/// # Errors
/// Where that leads to no end of the array.
pub fn cut(array: &[u8], max_elements: usize) -> Result<Elements<'_>, Uncut> {
    let mut elements = Vec::new();
    let mut open = Brackets::default();
    let (mut at, mut begins) = (1, 1);
    while let Some(byte) = array.get(at) {
        match byte {
            b'"' => match string_end(array, at + 1) {
                Some(end) => at = end,
                None => break,
            },
            b'{' | b'[' => match open.is_empty().then(|| vector::closed(array, at)).flatten() {
                Some(end) => {
                    at = end;
                    continue;
                }
                // Step by step, to tell what is wrong.
                None => open.push(*byte == b'{'),
            },
            b',' if open.is_empty() => {
                add(&mut elements, trim(&array[begins..at]), max_elements)?;
                begins = at + 1;
            }
            b']' if open.is_empty() => {
                let last = trim(&array[begins..at]);
                // There is none in an empty array.
                if !elements.is_empty() || !last.is_empty() {
                    add(&mut elements, last, max_elements)?;
                }
                return Ok(Elements { elements, end: at + 1 });
            }
            b'}' | b']' if open.pop() != Some(*byte == b'}') => {
                return Err(Uncut::Unbalanced { element: elements.len(), begins });
            }
            _ => {}
        }
        at += 1;
    }
    Err(Uncut::NoEnd { element: elements.len(), begins })
}

/// Behind the bracket that closes the one at this byte.
pub fn closed(json: &[u8], mut at: usize) -> Option<usize> {
    let mut open = Brackets::default();
    loop {
        match json.get(at)? {
            b'"' => at = string_end(json, at + 1)?,
            bracket @ (b'{' | b'[') => open.push(*bracket == b'{'),
            bracket @ (b'}' | b']') => {
                if open.pop() != Some(*bracket == b'}') {
                    return None;
                }
                if open.is_empty() {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

fn add<'a>(elements: &mut Vec<&'a [u8]>, element: &'a [u8], max_elements: usize) -> Result<(), Uncut> {
    if elements.len() == max_elements {
        return Err(Uncut::TooMany);
    }
    elements.push(element);
    Ok(())
}

/// Where the quote is that ends the string.
fn string_end(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = vector::special(json, at);
        at += match json.get(at)? {
            b'"' => return Some(at),
            // An escape, of which the second character is no quote that ends.
            b'\\' => 2,
            _ => 1,
        };
    }
}

/// The brackets that are open, a bit each: whether it is a brace. However deep they are, that is an eighth of a byte for one.
#[derive(Default)]
struct Brackets {
    bits: Vec<u64>,
    depth: usize,
}

impl Brackets {
    fn is_empty(&self) -> bool {
        self.depth == 0
    }

    fn push(&mut self, is_brace: bool) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.bits.len() {
            self.bits.push(0);
        }
        self.bits[word] = self.bits[word] & !(1 << bit) | u64::from(is_brace) << bit;
        self.depth += 1;
    }

    fn pop(&mut self) -> Option<bool> {
        self.depth = self.depth.checked_sub(1)?;
        Some(self.bits[self.depth / 64] >> (self.depth % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_closed_by_their_own_kind_at_any_depth() {
        for depth in [1, 63, 64, 65, 128, 1_000] {
            let kind = |at: usize| (at * 7 + at / 3).is_multiple_of(2);
            let open: String = (0..depth).map(|at| if kind(at) { '{' } else { '[' }).collect();
            let close: String = (0..depth).rev().map(|at| if kind(at) { '}' } else { ']' }).collect();
            let array = format!("[1,{open}{close},2]");
            let element = format!("{open}{close}");
            let cut_up = cut(array.as_bytes(), 3).unwrap();
            assert_eq!(cut_up.elements, [b"1", element.as_bytes(), b"2"]);
            assert_eq!(cut_up.end, array.len());
            // One of them in the wrong kind.
            for wrong in [0, depth / 2, depth - 1] {
                let mut array = array.clone().into_bytes();
                let at = 3 + depth + wrong;
                array[at] = if array[at] == b'}' { b']' } else { b'}' };
                assert_eq!(cut(&array, 3), Err(Uncut::Unbalanced { element: 1, begins: 3 }));
            }
        }
    }

    #[test]
    fn a_bracket_is_closed_by_the_one_that_is_its_own() {
        for (json, end) in [
            (r#"{"a":[1,"]}"]} x"#, Some(14)),
            ("[]]", Some(2)),
            (r#"{"a\"}":{}}"#, Some(11)),
            ("[}", None),
            ("[[]", None),
            (r#"["]"#, None),
        ] {
            assert_eq!(closed(json.as_bytes(), 0), end, "{json}");
        }
        assert_eq!(closed(b"[[1]]", 1), Some(4));
    }

    #[test]
    fn what_stands_behind_an_array_is_not_its() {
        assert_eq!(cut(b"[1] x", 1), Ok(Elements { elements: vec![b"1"], end: 3 }));
        assert_eq!(cut(b"[]", 0), Ok(Elements { elements: vec![], end: 2 }));
        assert_eq!(cut(b"[1,2]", 1), Err(Uncut::TooMany));
    }
}
