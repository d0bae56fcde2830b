//! Bodies in content codings.

use std::io::Write as _;

use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};

/// `content` in `codings`, in this order.
pub fn encode(codings: &str, content: &[u8]) -> Vec<u8> {
    codings.split(", ").fold(content.to_vec(), |content, coding| one(coding, &content))
}

fn one(coding: &str, mut content: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" | "x-gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let params = brotli::enc::BrotliEncoderParams { quality: 2, lgwin: 18, ..Default::default() };
            let mut coded = Vec::new();
            brotli::BrotliCompress(&mut content, &mut coded, &params).unwrap();
            coded
        }
        "zstd" => {
            let mut coded = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
            zstd::zstd_safe::compress(&mut coded, content, 1).unwrap();
            coded
        }
        other => panic!("no coding {other}"),
    }
}
