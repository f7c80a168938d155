//! Vectors of sixteen bytes, which each x86-64 has (SSE2), and of thirty-two, where AVX2 is found.

use std::arch::x86_64::*;

use super::{Few, Survey, chunk, is_special, portable, trim};

/// The bytes of a vector that each has.
const CHUNK: usize = 16;
/// From so many bytes on a call pays for itself.
const LONG: usize = 64;

/// Tests may say otherwise.
#[inline(always)]
fn has_avx2() -> bool {
    #[cfg(test)]
    if super::tests::LANES.get() != super::tests::Lanes::All {
        return false;
    }
    is_x86_feature_detected!("avx2")
}

#[inline(always)]
pub fn special(text: &[u8], at: usize) -> usize {
    let Some(bytes) = chunk(text, at) else { return at_the_end(text, at) };
    let found = specials(bytes);
    if found != 0 {
        return at + found.trailing_zeros() as usize;
    }
    let at = at + CHUNK;
    let Some(bytes) = chunk(text, at) else { return at_the_end(text, at) };
    let found = specials(bytes);
    if found != 0 {
        return at + found.trailing_zeros() as usize;
    }
    further(text, at + CHUNK)
}

#[inline(never)]
fn further(text: &[u8], mut at: usize) -> usize {
    if text.len().saturating_sub(at) >= LONG && has_avx2() {
        // SAFETY: it has AVX2.
        return unsafe { special_32(text, at) };
    }
    while let Some(bytes) = chunk(text, at) {
        match specials(bytes) {
            0 => at += CHUNK,
            found => return at + found.trailing_zeros() as usize,
        }
    }
    at_the_end(text, at)
}

/// Where fewer than a vector are left: the last vector begins before them.
#[inline(never)]
fn at_the_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let Some(last) = text.last_chunk() else {
        return rest.iter().position(|byte| is_special(*byte)).map_or(text.len(), |offset| at + offset);
    };
    match specials(last).unbounded_shr((CHUNK - rest.len()) as u32) {
        0 => text.len(),
        found => at + found.trailing_zeros() as usize,
    }
}

/// A bit for each byte that is special.
#[inline(always)]
fn specials(bytes: &[u8; CHUNK]) -> u32 {
    // SAFETY: each x86-64 has SSE2, and so many bytes are read.
    unsafe {
        let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
        let backslashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        // A quote becomes 0x20, a control character stays below it, all others are above.
        let turned = _mm_xor_si128(bytes, _mm_set1_epi8(0x02));
        let others = _mm_cmpeq_epi8(_mm_min_epu8(turned, _mm_set1_epi8(0x20)), turned);
        _mm_movemask_epi8(_mm_or_si128(backslashes, others)) as u32
    }
}

/// There are at least [`LONG`] bytes from `at` on.
#[target_feature(enable = "avx2")]
fn special_32(text: &[u8], mut at: usize) -> usize {
    while let Some(bytes) = chunk(text, at) {
        let [low, high] = halves(bytes).map(|half| specials_32(half));
        if !is_zero(_mm256_or_si256(low, high)) {
            return at + mask([low, high]).trailing_zeros() as usize;
        }
        at += 64;
    }
    while let Some(bytes) = chunk(text, at) {
        match _mm256_movemask_epi8(specials_32(load(bytes))) as u32 {
            0 => at += 32,
            found => return at + found.trailing_zeros() as usize,
        }
    }
    let Some(last) = text.last_chunk() else { return text.len() };
    let found = _mm256_movemask_epi8(specials_32(load(last))) as u32;
    match found.unbounded_shr((at + 32 - text.len()) as u32) {
        0 => text.len(),
        found => at + found.trailing_zeros() as usize,
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn specials_32(bytes: __m256i) -> __m256i {
    let backslashes = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8));
    let turned = _mm256_xor_si256(bytes, _mm256_set1_epi8(0x02));
    let others = _mm256_cmpeq_epi8(_mm256_min_epu8(turned, _mm256_set1_epi8(0x20)), turned);
    _mm256_or_si256(backslashes, others)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: so many bytes are read.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(bytes: &[u8; 64]) -> [__m256i; 2] {
    // SAFETY: so many bytes are read, in two halves.
    unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn is_zero(vector: __m256i) -> bool {
    _mm256_testz_si256(vector, vector) != 0
}

/// The highest bit of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn mask([low, high]: [__m256i; 2]) -> u64 {
    u64::from(_mm256_movemask_epi8(low) as u32) | u64::from(_mm256_movemask_epi8(high) as u32) << 32
}

#[inline(always)]
pub fn is_plain(text: &[u8]) -> bool {
    if let Some(last) = text.last_chunk() {
        let (chunks, _) = text.as_chunks();
        return chunks.iter().all(|chunk| specials(chunk) == 0) && specials(last) == 0;
    }
    if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        let mut both = [0; CHUNK];
        both[..8].copy_from_slice(first);
        both[8..].copy_from_slice(last);
        return specials(&both) == 0;
    }
    portable::is_plain(text)
}

#[inline(always)]
pub fn survey(bytes: &[u8]) -> Survey {
    if bytes.len() >= LONG && has_avx2() {
        // SAFETY: it has AVX2.
        return unsafe { survey_32(bytes) };
    }
    survey_16(bytes)
}

fn survey_16(bytes: &[u8]) -> Survey {
    let Some(last) = bytes.last_chunk() else { return portable::survey(bytes) };
    let (chunks, _) = bytes.as_chunks::<CHUNK>();
    // SAFETY: each x86-64 has SSE2, and of each chunk so many bytes are read.
    unsafe {
        let load = |chunk: &[u8; CHUNK]| _mm_loadu_si128(chunk.as_ptr().cast());
        let (mut all, mut least) = (load(last), load(last));
        for bytes in chunks.iter().map(load) {
            all = _mm_or_si128(all, bytes);
            least = _mm_min_epu8(least, bytes);
        }
        let control = _mm_cmpeq_epi8(_mm_min_epu8(least, _mm_set1_epi8(0x1f)), least);
        Survey { is_ascii: _mm_movemask_epi8(all) == 0, has_control: _mm_movemask_epi8(control) != 0 }
    }
}

#[target_feature(enable = "avx2")]
fn survey_32(bytes: &[u8]) -> Survey {
    let Some(last) = bytes.last_chunk() else { return survey_16(bytes) };
    let (mut all, mut least) = (load(last), load(last));
    let (chunks, rest) = bytes.as_chunks();
    for chunk in chunks {
        let [low, high] = halves(chunk);
        all = _mm256_or_si256(all, _mm256_or_si256(low, high));
        least = _mm256_min_epu8(least, _mm256_min_epu8(low, high));
    }
    if let Some(chunk) = rest.first_chunk() {
        let bytes = load(chunk);
        all = _mm256_or_si256(all, bytes);
        least = _mm256_min_epu8(least, bytes);
    }
    let control = _mm256_cmpeq_epi8(_mm256_min_epu8(least, _mm256_set1_epi8(0x1f)), least);
    Survey { is_ascii: _mm256_movemask_epi8(all) == 0, has_control: !is_zero(control) }
}

#[inline]
pub fn closed(json: &[u8], at: usize) -> Option<usize> {
    if has_avx2() && is_x86_feature_detected!("pclmulqdq") {
        // SAFETY: it has both.
        return unsafe { closed_64(json, at) };
    }
    None
}

/// Sixty-four bytes at a time, as simdjson does it (Langdale and Lemire, "Parsing gigabytes of JSON per second", 2019): a bit for
/// each byte that is in a string, then one bracket after the other of those that are in none.
#[target_feature(enable = "avx2,pclmulqdq")]
fn closed_64(json: &[u8], mut at: usize) -> Option<usize> {
    // Of each bracket that is open a bit: whether it is a brace.
    let (mut levels, mut depth) = (0u64, 0);
    // All ones where the last block ended in a string, and a one where it ended with a backslash that escapes.
    let (mut in_string, mut escapes) = (0, 0);
    let mut last = [b' '; 64];
    loop {
        let bytes = match chunk(json, at) {
            Some(bytes) => bytes,
            None => {
                let rest = json.get(at..).filter(|rest| !rest.is_empty())?;
                last[..rest.len()].copy_from_slice(rest);
                &last
            }
        };
        let halves = halves(bytes);
        let are = |byte: u8| halves.map(|half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte as i8)));
        let (mut quotes, backslashes) = (mask(are(b'"')), mask(are(b'\\')));
        if backslashes | escapes != 0 {
            quotes &= !escaped(backslashes, &mut escapes);
        }
        let odd = _mm_clmulepi64_si128::<0>(_mm_set_epi64x(0, quotes as i64), _mm_set1_epi8(-1));
        let strings = _mm_cvtsi128_si64(odd) as u64 ^ in_string;
        in_string = ((strings as i64) >> 63) as u64;
        // There it escapes nothing.
        if backslashes & !strings != 0 {
            return None;
        }
        // Brackets and braces differ by this bit.
        let alike = halves.map(|half| _mm256_or_si256(half, _mm256_set1_epi8(0x20)));
        let is = |half, byte: u8| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte as i8));
        let brackets = mask(alike.map(|half| _mm256_or_si256(is(half, b'{'), is(half, b'}'))));
        let mut brackets = brackets & !strings;
        while brackets != 0 {
            let place = brackets.trailing_zeros() as usize;
            brackets &= brackets - 1;
            let bracket = bytes[place & 63];
            let is_brace = u64::from(bracket & 0x20 != 0);
            // What opens has this bit.
            if bracket & 0x02 != 0 {
                if depth == u64::BITS {
                    return None;
                }
                levels = levels << 1 | is_brace;
                depth += 1;
            } else {
                if depth == 0 || levels & 1 != is_brace {
                    return None;
                }
                levels >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Some(at + place + 1);
                }
            }
        }
        at += 64;
    }
}

/// The bytes that a backslash escapes; the first one where `escapes` says so, which afterwards tells of the next.
fn escaped(backslashes: u64, escapes: &mut u64) -> u64 {
    let (mut escaped, mut rest) = (*escapes, backslashes & !*escapes);
    *escapes = 0;
    while rest != 0 {
        match rest.trailing_zeros() {
            63 => {
                *escapes = 1;
                break;
            }
            at => {
                escaped |= 2 << at;
                // What is escaped escapes nothing.
                rest &= !(3 << at);
            }
        }
    }
    escaped
}

#[inline]
pub fn lines(text: &[u8], most: usize) -> Option<Vec<&[u8]>> {
    if has_avx2() {
        // SAFETY: it has AVX2.
        return unsafe { lines_32(text, most) };
    }
    portable::lines(text, most)
}

#[inline]
#[target_feature(enable = "avx2")]
fn lines_32(text: &[u8], most: usize) -> Option<Vec<&[u8]>> {
    let feed = _mm256_set1_epi8(b'\n' as i8);
    let (mut lines, mut begins) = (Vec::new(), 0);
    while begins < text.len() {
        let mut at = begins;
        let end = loop {
            let Some(bytes) = chunk::<128>(text, at) else { break line_feed(text, at) };
            let feeds = |from: usize| {
                // SAFETY: a quarter of the chunk is read, from 0, 32, 64 or 96 on.
                _mm256_cmpeq_epi8(unsafe { _mm256_loadu_si256(bytes.as_ptr().add(from).cast()) }, feed)
            };
            let first = [feeds(0), feeds(32)];
            if !is_zero(_mm256_or_si256(first[0], first[1])) {
                break at + mask(first).trailing_zeros() as usize;
            }
            let second = [feeds(64), feeds(96)];
            if !is_zero(_mm256_or_si256(second[0], second[1])) {
                break at + 64 + mask(second).trailing_zeros() as usize;
            }
            at += 128;
        };
        // SAFETY: it is the place of a line feed from `begins` on, or the end of the text.
        let line = trim(unsafe { text.get_unchecked(begins..end) });
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

/// The next line feed from there on, or the end.
#[cold]
fn line_feed(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    memchr::memchr(b'\n', rest).map_or(text.len(), |offset| at + offset)
}

/// They are written up to `end`, which is in bounds, and [`super::PAST`] behind it.
#[inline(always)]
pub fn are_twice(few: &Few, start: usize, end: usize) -> bool {
    // SAFETY: each x86-64 has SSE2. Four are read from below the end on at most: three behind the last of them.
    unsafe {
        let load = |at: usize| _mm_loadu_si128(few.as_ptr().add(at).cast());
        let mut twice = _mm_setzero_si128();
        let mut at = start;
        while at + 1 < end {
            let four = load(at);
            // Each with what stands so far behind it.
            let mut other = at + 1;
            while other < end {
                twice = _mm_or_si128(twice, _mm_cmpeq_epi32(four, load(other)));
                other += 1;
            }
            at += 4;
        }
        _mm_movemask_epi8(twice) != 0
    }
}
