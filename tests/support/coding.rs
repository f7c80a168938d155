//! What clients compress bodies with.

use std::io::Write;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};

/// As `Accept-Encoding` names them.
pub const CODINGS: [&str; 4] = ["gzip", "zstd", "deflate", "br"];

/// # Panics
/// With another coding.
pub fn compressed(coding: &str, body: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => gzip(body),
        "zstd" => zstd::encode_all(body, 3).expect("it is in memory"),
        "deflate" => zlib(body),
        "br" => brotli(body, 22),
        _ => panic!("{coding} is none of {CODINGS:?}"),
    }
}

pub fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("it is in memory");
    encoder.finish().expect("it is in memory")
}

/// What `deflate` is by its RFC.
pub fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("it is in memory");
    encoder.finish().expect("it is in memory")
}

/// What many take for `deflate`.
pub fn raw_deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("it is in memory");
    encoder.finish().expect("it is in memory")
}

/// With a window of this many bits; above 24 it is the extension of large windows.
pub fn brotli(body: &[u8], window_log: i32) -> Vec<u8> {
    let parameters = brotli::enc::BrotliEncoderParams {
        quality: 2,
        lgwin: window_log,
        large_window: window_log > 24,
        ..Default::default()
    };
    let mut compressed = Vec::new();
    brotli::BrotliCompress(&mut &*body, &mut compressed, &parameters).expect("it is in memory");
    compressed
}

/// With a window of this many bits, and no content size in its head.
pub fn zstd_streamed(body: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("it is in memory");
    encoder.window_log(window_log).expect("it is known");
    encoder.include_checksum(true).expect("it is known");
    encoder.write_all(body).expect("it is in memory");
    encoder.finish().expect("it is in memory")
}
