use std::{io::Write, sync::LazyLock};

use actix_web::http::header::HeaderValue;
use bytes::Bytes;
use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    config::ByteSize,
    ingest::in_flight::{InFlight, Reservation},
};

const NO_LIMIT: usize = 1 << 30;
const ALL: [Coding; 4] = [Coding::Gzip, Coding::Zstd, Coding::Deflate, Coding::Brotli];

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(body: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), level);
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Without a content size in its head, as a streaming encoder has it.
fn zstd(body: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// With it, so that the window of a short one is its content.
fn zstd_sized(body: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.set_pledged_src_size(Some(body.len() as u64)).unwrap();
    encoder.include_contentsize(true).unwrap();
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn brotli(body: &[u8], quality: i32, window_log: i32) -> Vec<u8> {
    let parameters = ::brotli::enc::BrotliEncoderParams {
        quality,
        lgwin: window_log,
        large_window: window_log > 24,
        ..Default::default()
    };
    let mut compressed = Vec::new();
    ::brotli::BrotliCompress(&mut &*body, &mut compressed, &parameters).unwrap();
    compressed
}

/// As encoders of each kind write it.
fn encoded(body: &[u8]) -> Vec<(Coding, Vec<u8>)> {
    let half = body.len() / 2;
    vec![
        (Coding::Gzip, gzip(body)),
        (Coding::Gzip, [gzip(&body[..half]), gzip(b""), gzip(&body[half..])].concat()),
        (Coding::Deflate, zlib(body)),
        (Coding::Deflate, raw_deflate(body, Compression::default())),
        (Coding::Deflate, raw_deflate(body, Compression::none())),
        (Coding::Zstd, zstd(body, 20)),
        // With the content size in its head.
        (Coding::Zstd, ::zstd::bulk::compress(body, 3).unwrap()),
        (Coding::Zstd, [zstd(&body[..half], 10), skippable(b"not a part"), zstd(&body[half..], 23)].concat()),
        (Coding::Brotli, brotli(body, 5, 22)),
        (Coding::Brotli, brotli(body, 1, 10)),
        (Coding::Brotli, brotli(body, 9, 24)),
    ]
}

fn skippable(content: &[u8]) -> Vec<u8> {
    [&0x184d_2a57_u32.to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// Pushes a stream through in pieces of this size, with `http.max_in_flight` at `max_body`, which is the least that may be
/// configured. The status and the sentence of a refusal.
fn through(coding: Coding, stream: &[u8], piece: usize, max_body: usize) -> Result<Vec<u8>, (u16, String)> {
    let in_flight = InFlight::default();
    let share = Reservation::new(&in_flight, ByteSize(max_body as u64));
    let inflate = || -> Result<Bytes, Problem> {
        let mut inflating = Inflating::new(coding, piece.min(stream.len()), max_body, share);
        for piece in stream.chunks(piece) {
            let mut piece = Bytes::copy_from_slice(piece);
            if !inflating.push_short(&mut piece)? {
                inflating.push(piece)?;
            }
            assert!(
                (1..=max_body as i64).contains(&in_flight.all.get()),
                "{} of {max_body} bytes",
                in_flight.all.get()
            );
        }
        inflating.finish()
    };
    let inflated = inflate().map_err(|problem| {
        let is_coding = problem.accept_encoding.is_some();
        assert_eq!(is_coding, problem.status == 415, "{problem}");
        assert!(problem.detail.contains(coding.name()), "it names the coding: {problem}");
        (problem.status.as_u16(), problem.detail.into_owned())
    });
    if let Ok(inflated) = &inflated {
        assert_eq!(in_flight.all.get(), inflated.len() as i64, "what comes out is what is counted");
    }
    let inflated = inflated.map(|bytes| bytes.to_vec());
    assert_eq!(in_flight.all.get(), 0);
    inflated
}

fn status(coding: Coding, stream: &[u8]) -> Result<Vec<u8>, u16> {
    let whole = through(coding, stream, usize::MAX, NO_LIMIT).map_err(|(status, _)| status);
    // However it comes.
    let in_bytes = through(coding, stream, 1, NO_LIMIT).map_err(|(status, _)| status);
    assert_eq!(whole, in_bytes, "{coding:?}");
    whole
}

/// As JSON is: with much in common.
fn events(count: usize) -> Vec<u8> {
    let event =
        |index: usize| format!(r#"{{"type":"login","client_id":"c{}","n":{}}}"#, index % 97, index * 7919 % 1009);
    format!("[{}]", (0..count).map(event).collect::<Vec<_>>().join(",")).into_bytes()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect()
}

#[test]
fn what_was_compressed_comes_out_however_it_is_cut_into_pieces() {
    for body in [Vec::new(), b"{}".to_vec(), events(3), events(100), noise(3_000), events(20_000)] {
        for (coding, stream) in encoded(&body) {
            let pieces = if body.len() < 5_000 { &[1, 2, 7, 64][..] } else { &[999, 32 << 10] };
            for piece in pieces.iter().copied().chain([usize::MAX]) {
                let inflated = through(coding, &stream, piece, NO_LIMIT);
                assert!(inflated.as_ref() == Ok(&body), "{coding:?}, {} bytes, {piece}", body.len());
            }
        }
    }
}

#[test]
fn what_is_long_is_told_to_be_done_aside() {
    let short = |coding, body: &[u8]| {
        let share = Reservation::new(&InFlight::default(), ByteSize(NO_LIMIT as u64));
        let mut inflating = Inflating::new(coding, 0, NO_LIMIT, share);
        let mut piece = Bytes::copy_from_slice(body);
        let is_done = inflating.push_short(&mut piece).unwrap();
        if !is_done {
            inflating.push(piece).unwrap();
        }
        (is_done, inflating.finish().unwrap())
    };
    let (small, large, incompressible) = (events(100), events(20_000), noise(40 << 10));
    for (coding, stream, body, is_short) in [
        (Coding::Gzip, gzip(&small), &small, true),
        (Coding::Deflate, zlib(&small), &small, true),
        (Coding::Zstd, zstd(&small, 20), &small, true),
        // It inflates a window at once.
        (Coding::Brotli, brotli(&small, 5, 22), &small, false),
        (Coding::Gzip, gzip(&large), &large, false),
        (Coding::Zstd, zstd(&large, 20), &large, false),
        (Coding::Gzip, gzip(&incompressible), &incompressible, false),
        // Each member has a window of its own.
        (Coding::Gzip, [gzip(b"").repeat(10), gzip(&small)].concat(), &small, true),
        (Coding::Gzip, [gzip(b"").repeat(100), gzip(&small)].concat(), &small, false),
    ] {
        let (is_done, inflated) = short(coding, &stream);
        assert!(inflated == *body, "{coding:?}");
        assert_eq!(is_done, is_short, "{coding:?}, {} bytes", body.len());
    }
}

#[test]
fn a_body_of_no_bytes_has_nothing_to_inflate() {
    for coding in ALL {
        assert_eq!(through(coding, b"", 1, 10), Ok(Vec::new()), "{coding:?}");
    }
}

#[test]
fn the_largest_body_gets_in_where_nothing_else_is_in_flight_and_nothing_larger() {
    for body in [events(20_000), noise(600_000), vec![b' '; 8 << 20]] {
        for (coding, stream) in encoded(&body) {
            // What comes in is bounded where it is read.
            let inflated = through(coding, &stream, 32 << 10, body.len());
            assert!(inflated.as_ref() == Ok(&body), "{coding:?}: {:?}", inflated.err());
            for (max_body, piece) in [(body.len() - 1, 32 << 10), (body.len() - 1, usize::MAX), (100, 1_000)] {
                let refused = through(coding, &stream, piece, max_body).unwrap_err();
                assert_eq!(refused.0, 413, "{coding:?}: {refused:?}");
                assert!(refused.1.contains("http.max_body"), "{refused:?}");
            }
        }
    }
}

#[test]
fn a_bomb_ends_where_it_would_be_too_large() {
    let body = vec![b' '; 64 << 20];
    for (coding, stream) in [
        (Coding::Gzip, gzip(&body)),
        (Coding::Deflate, raw_deflate(&body, Compression::best())),
        (Coding::Zstd, zstd(&body, 23)),
        (Coding::Zstd, ::zstd::bulk::compress(&body, 1).unwrap()),
        (Coding::Brotli, brotli(&body, 2, 24)),
    ] {
        assert!(stream.len() < 1 << 20, "{coding:?}: it is one, of {} bytes", stream.len());
        for max_body in [1 << 20, 1] {
            assert_eq!(through(coding, &stream, 32 << 10, max_body).unwrap_err().0, 413, "{coding:?}");
        }
    }
}

#[test]
fn a_stream_that_is_cut_is_refused_wherever_that_is() {
    let body = events(5);
    for (coding, stream) in encoded(&body) {
        for length in 1..stream.len() {
            let inflated = through(coding, &stream[..length], usize::MAX, NO_LIMIT);
            match inflated {
                Err((400, sentence)) => assert!(sentence.contains("ends before its end"), "{coding:?}: {sentence}"),
                // Members and frames end alone, too.
                Ok(part) => assert!(body.starts_with(&part) && part.len() < body.len(), "{coding:?} at {length}"),
                Err(other) => panic!("{coding:?} at {length}: {other:?}"),
            }
        }
        assert_eq!(through(coding, &stream, usize::MAX, NO_LIMIT), Ok(body.clone()));
    }
    // Those of one part are never whole before their end.
    for (coding, stream) in
        [(Coding::Gzip, gzip(&body)), (Coding::Zstd, zstd(&body, 20)), (Coding::Deflate, zlib(&body))]
    {
        assert!((1..stream.len()).all(|length| status(coding, &stream[..length]) == Err(400)));
    }
}

#[test]
fn a_stream_with_a_checksum_is_taken_as_it_was_or_not_at_all() {
    let body = events(5);
    for (coding, stream) in
        [(Coding::Gzip, gzip(&body)), (Coding::Zstd, zstd(&body, 20)), (Coding::Deflate, zlib(&body))]
    {
        for at in 0..stream.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = stream.clone();
                damaged[at] ^= flip;
                match through(coding, &damaged, usize::MAX, 10 * body.len()) {
                    // Of a head not all counts, such as gzip's time.
                    Ok(inflated) => assert_eq!(inflated, body, "{coding:?} at {at}"),
                    Err((status, sentence)) => {
                        assert!([400, 413, 415].contains(&status), "{coding:?} at {at}: {sentence}");
                        assert!(!sentence.contains(deflate::BAD_STATE), "{coding:?} at {at}: it was not known before");
                    }
                }
            }
        }
        let mut wrong = stream.clone();
        // The checksum itself; gzip's length stands behind it.
        let at = stream.len() - if coding == Coding::Gzip { 8 } else { 4 };
        wrong[at] ^= 1;
        assert_eq!(status(coding, &wrong), Err(400), "{coding:?}");
    }
}

#[test]
fn what_stands_behind_a_stream_is_refused_unless_it_is_another_part_of_it() {
    let body = events(3);
    for (coding, stream) in encoded(&body) {
        for behind in [&b"x"[..], b"\0\0", b"{\"type\":\"a\"}", b"\x1f\x8c", b"\x28\xb5\x2f\xfe\0\0"] {
            assert_eq!(status(coding, &[&stream, behind].concat()), Err(400), "{coding:?}, {behind:?}");
        }
        let twice = status(coding, &[&*stream, &*stream].concat());
        let expected = match coding {
            Coding::Gzip | Coding::Zstd => Ok([&*body, &*body].concat()),
            Coding::Deflate | Coding::Brotli => Err(400),
        };
        assert_eq!(twice, expected, "{coding:?}");
    }
}

#[test]
fn what_is_called_by_another_coding_is_refused() {
    let body = events(3);
    for coding in ALL {
        for plain in [&b"{\"type\":\"a\"}"[..], &body, b"{", b"\xff\xff\xff\xff\xff\xff", &noise(1_000)] {
            assert_eq!(status(coding, plain), Err(400), "{coding:?}: {plain:?}");
        }
        for (other, stream) in encoded(&body).into_iter().filter(|(other, _)| *other != coding) {
            assert_eq!(status(coding, &stream), Err(400), "{other:?} as {coding:?}");
        }
    }
}

#[test]
fn only_one_layer_is_inflated() {
    for (coding, stream) in encoded(&gzip(&events(3))) {
        assert_eq!(status(coding, &stream), Ok(gzip(&events(3))), "{coding:?}");
    }
}

#[test]
fn a_window_above_8_mib_of_zstd_and_a_large_one_of_brotli_are_415() {
    let body = events(1_000);
    assert_eq!(status(Coding::Zstd, &zstd(&body, 23)), Ok(body.clone()));
    let large = zstd(&body, 24);
    assert_eq!(status(Coding::Zstd, &large), Err(415));
    // Behind other frames as well.
    assert_eq!(status(Coding::Zstd, &[skippable(b""), zstd(&body, 20), large].concat()), Err(415));
    // A single segment, whose window is its content.
    let long = vec![b' '; (8 << 20) + 1];
    assert_eq!(status(Coding::Zstd, &zstd_sized(&long[1..], 24)).map(|body| body.len()), Ok(8 << 20));
    let sentence = through(Coding::Zstd, &zstd_sized(&long, 24), usize::MAX, NO_LIMIT).unwrap_err();
    assert!(sentence.0 == 415 && sentence.1.contains("8 MiB"), "{sentence:?}");

    assert_eq!(status(Coding::Brotli, &brotli(&body, 5, 24)), Ok(body.clone()));
    assert_eq!(status(Coding::Brotli, &brotli(&body, 5, 26)), Err(415));
}

#[test]
fn a_dictionary_is_415() {
    // A frame of one segment that names dictionary 7; zlib's bit for one, and its checksum.
    assert_eq!(status(Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 5, 0, 0, 0]), Err(415));
    assert_eq!(status(Coding::Deflate, &[0x78, 0x20, 1, 2, 3, 4, 5, 6]), Err(415));
}

#[test]
fn a_size_that_a_frame_claims_is_nothing_to_go_by() {
    // One that is not there: a frame with a window of 1 KiB, of 2^40 bytes, whose last block is empty.
    let claims = [&[0x28, 0xb5, 0x2f, 0xfd, 0xc0, 0][..], &(1u64 << 40).to_le_bytes(), &[1, 0, 0]].concat();
    assert_eq!(status(Coding::Zstd, &claims), Err(400));
    // A block of 100,000 times one byte in a frame of 5.
    let more = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, 0x03, 0x35, 0x0c, b'a'];
    assert_eq!(status(Coding::Zstd, &more), Err(400));
}

#[test]
fn one_coding_that_is_known_is_taken() {
    for (fields, expected) in [
        (&[][..], Ok(None)),
        (&[""], Ok(None)),
        (&["identity"], Ok(None)),
        (&["Identity, ,identity", ""], Ok(None)),
        (&["gzip"], Ok(Some(Coding::Gzip))),
        (&["X-GZip"], Ok(Some(Coding::Gzip))),
        (&[" zstd "], Ok(Some(Coding::Zstd))),
        (&["deflate"], Ok(Some(Coding::Deflate))),
        (&["br"], Ok(Some(Coding::Brotli))),
        (&["identity", "gzip"], Ok(Some(Coding::Gzip))),
        (&[",br,"], Ok(Some(Coding::Brotli))),
        (&["gzip, gzip"], Err("more than one")),
        (&["gzip", "br"], Err("more than one")),
        (&["what, ever"], Err("more than one")),
        (&["compress"], Err("is not taken")),
        (&["brotli"], Err("is not taken")),
        (&["gzip;q=1"], Err("is not taken")),
        (&["dcz"], Err("is not taken")),
    ] {
        let mut headers = HeaderMap::new();
        fields.iter().for_each(|field| headers.append(CONTENT_ENCODING, HeaderValue::from_static(field)));
        match (Coding::of(&headers), expected) {
            (Ok(found), Ok(coding)) => assert_eq!(found, coding, "{fields:?}"),
            (Err(problem), Err(words)) => {
                assert!(problem.detail.contains(words) && problem.detail.contains(Coding::ACCEPTED), "{problem}");
                assert_eq!((problem.status.as_u16(), problem.accept_encoding), (415, Some("gzip, zstd, deflate, br")));
            }
            (found, _) => panic!("{fields:?}: {found:?}"),
        }
    }
}

/// Some of each coding.
static STREAMS: LazyLock<Vec<(Coding, Vec<u8>)>> =
    LazyLock::new(|| (0..4).flat_map(|count| encoded(&events(count))).collect());

fn stream() -> impl Strategy<Value = (Coding, Vec<u8>)> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3u8);
    let changed = (select(STREAMS.clone()), vec(change, 0..6)).prop_map(|((coding, mut stream), changes)| {
        for (at, byte, what) in changes {
            let at = at.index(stream.len());
            match what {
                0 => stream[at] = byte,
                1 => stream.insert(at, byte),
                _ if stream.len() > 1 => drop(stream.remove(at)),
                _ => {}
            }
        }
        (coding, stream)
    });
    prop_oneof![4 => changed, 1 => (select(ALL.to_vec()), vec(any::<u8>(), 0..64))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn any_bytes_are_inflated_within_the_limits_or_refused((coding, stream) in stream(), piece in 1..80usize) {
        match through(coding, &stream, piece, 1_000) {
            Ok(inflated) => prop_assert!(inflated.len() <= 1_000),
            Err((status, sentence)) => prop_assert!([400, 413, 415].contains(&status), "{sentence}"),
        }
    }
}
