//! Names of fields: what is looked for among those of an event, and what tells those apart, in a few instructions each.

use std::ops::Index;

/// The names of fields that are looked for, which differ.
pub trait Names {
    fn count(&self) -> usize;

    /// The place of the one that is this name, which has this [`mark`].
    fn place(&self, name: &[u8], mark: u32) -> Option<usize>;
}

impl Names for Vec<String> {
    fn count(&self) -> usize {
        self.len()
    }

    fn place(&self, name: &[u8], _: u32) -> Option<usize> {
        self.iter().position(|other| other.as_bytes() == name)
    }
}

/// The same, by their marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldNames {
    names: Vec<String>,
    /// By the first bits of a mark the place of the name that has them.
    places: [u8; 32],
}

impl FieldNames {
    /// None has these bits.
    const NONE: u8 = u8::MAX;
    /// More than one, or one whose place does not fit.
    const SEVERAL: u8 = u8::MAX - 1;

    /// One alone.
    pub fn of(name: &str) -> Self {
        let mut names = Self::default();
        names.add(name);
        names
    }

    /// The place of this name, which is there from now on.
    pub fn add(&mut self, name: &str) -> usize {
        if let Some(known) = self.names.iter().position(|known| known == name) {
            return known;
        }
        let at = self.names.len();
        self.names.push(name.to_owned());
        let place = &mut self.places[Self::bits(mark(name.as_bytes()))];
        *place = match u8::try_from(at) {
            Ok(at) if *place == Self::NONE && at < Self::SEVERAL => at,
            _ => Self::SEVERAL,
        };
        at
    }

    #[inline(always)]
    fn bits(mark: u32) -> usize {
        (mark >> 27) as usize
    }

    #[cold]
    fn place_of_several(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|other| other.as_bytes() == name)
    }
}

impl Default for FieldNames {
    fn default() -> Self {
        Self { names: Vec::new(), places: [Self::NONE; 32] }
    }
}

impl Index<usize> for FieldNames {
    type Output = str;

    fn index(&self, place: usize) -> &str {
        &self.names[place]
    }
}

impl Names for FieldNames {
    #[inline(always)]
    fn count(&self) -> usize {
        self.names.len()
    }

    #[inline(always)]
    fn place(&self, name: &[u8], mark: u32) -> Option<usize> {
        match self.places[Self::bits(mark)] {
            Self::NONE => None,
            Self::SEVERAL => self.place_of_several(name),
            place => {
                let place = usize::from(place);
                is_same(self.names.get(place)?.as_bytes(), name).then_some(place)
            }
        }
    }
}

/// What names are told apart by: two that differ have the same one time in four billion, unless somebody wants it.
#[inline(always)]
pub fn mark(name: &[u8]) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let number = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk);
    let word = if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        let between = if name.len() <= 16 { number(first) } else { folded(name) };
        between.wrapping_mul(ODD) ^ number(last)
    } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
    } else {
        name.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
    };
    ((word ^ name.len() as u64).wrapping_mul(ODD) >> 32) as u32
}

/// The same of all eights of a long one.
#[inline(never)]
fn folded(name: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (eights, _) = name.as_chunks();
    eights.iter().fold(0, |word: u64, eight| (word.rotate_left(5) ^ u64::from_le_bytes(*eight)).wrapping_mul(ODD))
}

/// Whether they are the same; most are short, and a comparison of longer ones is a call.
#[inline(always)]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    if one.len() > 16 {
        return one == other;
    }
    if let (Some(a), Some(b), Some(c), Some(d)) =
        (one.first_chunk::<8>(), other.first_chunk::<8>(), one.last_chunk::<8>(), other.last_chunk::<8>())
    {
        return a == b && c == d;
    }
    if let (Some(a), Some(b), Some(c), Some(d)) =
        (one.first_chunk::<4>(), other.first_chunk::<4>(), one.last_chunk::<4>(), other.last_chunk::<4>())
    {
        return a == b && c == d;
    }
    one.iter().zip(other).all(|(a, b)| a == b)
}
