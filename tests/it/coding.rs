//! Request bodies in content codings, and bodies that are too large.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};
use sluicegate::sim::{Fault, Kind};

use crate::support::{Answer, Exchange, Gateway, coded::encode, sim};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":2,"temperature":0}"#;
const PATH: &str = "/v1/chat/completions";

fn post(gate: &Gateway, path: &str, codings: &str, body: impl AsRef<[u8]>) -> Answer {
    gate.request("POST", path, &[("content-type", "application/json"), ("content-encoding", codings)], body)
}

#[test]
fn a_coded_body_reaches_the_backend_in_none() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "routing: {aliases: {nick: sim}}\n").healthy();
    let aliased = CHAT.replacen("sim", "nick", 1);
    let codings = ["gzip", "X-GZIP", "deflate", "br", "zstd", "gzip, zstd", "br, deflate, gzip", "identity"];
    for codings in codings {
        let body = encode(&codings.to_lowercase().replace("identity", "gzip"), aliased.as_bytes());
        let body = if codings == "identity" { aliased.as_bytes() } else { &body };
        let answer = post(&gate, PATH, codings, body);
        assert_eq!(answer.status, 200, "{codings}: {}", answer.text());
        let seen = sim.last(Some(PATH)).unwrap();
        assert_eq!(seen.body, CHAT.as_bytes(), "{codings}");
        assert_eq!(seen.header("content-encoding"), None, "{codings}");
        assert_eq!(seen.header("content-length"), Some(&*CHAT.len().to_string()), "{codings}");
    }
    let series = r#"sluicegate_payload_edits_total{edit="decoded"}"#;
    gate.until("/metrics", |text| text.contains(&format!("{series} {}\n", codings.len() - 1)));
}

#[test]
fn a_coded_body_may_come_in_pieces() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-encoding: zstd\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut exchange = Exchange::raw(gate.addr, head.as_bytes());
    for byte in encode("zstd", CHAT.as_bytes()) {
        exchange.send(&[&b"1\r\n"[..], &[byte], b"\r\n"].concat());
    }
    exchange.send(b"0\r\n\r\n");
    assert_eq!(exchange.finish().status, 200);
    assert_eq!(sim.last(Some(PATH)).unwrap().body, CHAT.as_bytes());
}

#[test]
fn a_kept_answer_serves_every_coding_of_its_question() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    assert_eq!(gate.post(PATH, CHAT).status, 200);
    for codings in ["gzip", "br, zstd"] {
        let answer = post(&gate, PATH, codings, encode(codings, CHAT.as_bytes()));
        let status = answer.header("cache-status").unwrap();
        assert!(status.contains("sluicegate;hit"), "{codings}: {status}");
    }
}

#[test]
fn a_coded_form_is_read_too() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "routing: {aliases: {nick: sim}}\n").healthy();
    let form = |model| format!("--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=b"), ("content-encoding", "gzip")];
    gate.request("POST", "/v1/embeddings", &headers, encode("gzip", form("nick").as_bytes()));
    assert_eq!(sim.last(Some("/v1/embeddings")).unwrap().body, form("sim").as_bytes());
}

#[test]
fn other_paths_pass_as_they_come() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    for codings in ["gzip", "aws-chunked", "gzip, gzip, gzip, gzip"] {
        let answer = post(&gate, "/custom", codings, b"\x1f\x8b, more or less");
        assert_ne!(answer.status, 415);
        let seen = sim.last(Some("/custom")).unwrap();
        assert_eq!((&seen.body[..], seen.header("content-encoding")), (&b"\x1f\x8b, more or less"[..], Some(codings)));
    }
}

#[test]
fn an_unknown_coding_is_told_which_are_known() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    for codings in ["compress", "gzip, gzip, gzip, gzip"] {
        let answer = post(&gate, PATH, codings, CHAT);
        assert_eq!((answer.status, &*answer.code()), (415, "unsupported_coding"), "{codings}");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd, br, deflate"));
    }
    assert!(sim.last(Some(PATH)).is_none());
}

#[test]
fn a_broken_coding_is_told_where() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    for codings in ["gzip", "deflate", "br", "zstd"] {
        let whole = encode(codings, CHAT.as_bytes());
        let more = [&whole[..], b"and on it goes"].concat();
        for (body, said) in [
            (&whole[..whole.len() - 1], format!("inside its {codings} coding, after {} bytes", whole.len() - 1)),
            (&more, format!("after its {codings} coding has ended at byte {}", whole.len())),
            (CHAT.as_bytes(), format!("{codings} coding breaks near byte 0")),
        ] {
            let answer = post(&gate, PATH, codings, body);
            assert_eq!((answer.status, &*answer.code()), (400, "bad_request"), "{codings}");
            assert!(answer.text().contains(&said), "{said}: {}", answer.text());
        }
    }
    assert!(sim.last(Some(PATH)).is_none());
}

#[test]
fn the_cap_counts_decoded_bytes() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "limits: {request_body: 64KiB}\n").healthy();
    let large = CHAT.replace("hi", &"x".repeat(70_000));
    for codings in ["gzip", "deflate", "br", "zstd", "br, gzip"] {
        let body = encode(codings, large.as_bytes());
        assert!(body.len() < 1024);
        let answer = post(&gate, PATH, codings, body);
        assert_eq!((answer.status, &*answer.code()), (413, "payload_too_large"), "{codings}");
    }
    let fits = CHAT.replace("hi", &"x".repeat(60_000));
    assert_eq!(post(&gate, PATH, "gzip", encode("gzip", fits.as_bytes())).status, 200);
}

/// A picture of stripes, as PNG in base64.
fn picture(width: u32, height: u32) -> String {
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i.wrapping_mul(i) % 251) as u8).collect();
    let mut data = Vec::new();
    PngEncoder::new(&mut data).write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
    STANDARD.encode(data)
}

#[test]
fn images_become_as_small_as_the_model_needs_them() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "normalize: {images: {max_pixels: 10000}}\n").healthy();
    let body = |image: &str| {
        format!(
            r#"{{ "model":"sim","max_tokens":1,"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}]}}"#
        )
    };
    let small = body(&picture(100, 100));
    assert_eq!(gate.post(PATH, &small).status, 200);
    assert_eq!(sim.last(Some(PATH)).unwrap().body, small.as_bytes());

    let large = body(&picture(400, 200));
    assert_eq!(gate.post(PATH, &large).status, 200);
    let seen = sim.last(Some(PATH)).unwrap();
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
    let sent = String::from_utf8(seen.body.to_vec()).unwrap();
    let (before, rest) = sent.split_once("base64,").unwrap();
    let (image, after) = rest.split_once('"').unwrap();
    assert!(large.starts_with(&format!("{before}base64,")) && large.ends_with(&format!("\"{after}")));
    let image = image::load_from_memory(&STANDARD.decode(image).unwrap()).unwrap();
    assert_eq!((image.width(), image.height()), (141, 70));
    gate.until("/metrics", |text| text.contains("sluicegate_payload_edits_total{edit=\"images\"} 1\n"));
    let saved = gate.metric(r#"sluicegate_payload_saved_bytes_total{edit="images"}"#);
    assert_eq!(saved, (large.len() - sent.len()) as f64);
}

#[test]
fn a_body_is_held_no_longer_than_it_may_be_sent_again() {
    let sim = sim(|_| {});
    for (config, held) in [("resume: {mode: off}\n", false), ("", true)] {
        let gate = Gateway::new(&[&sim], config).healthy();
        sim.fault(Fault::new(Kind::Stall).after(3).times(1));
        let body = CHAT.replace("\"max_tokens\":2", "\"max_tokens\":9,\"stream\":true");
        let mut stream = gate.start(PATH, &body);
        stream.until("\"content\":");
        // A stream that may have to go on elsewhere needs its question to its end.
        let bytes = if held { body.len() } else { 0 };
        gate.until("/metrics", |text| text.contains(&format!("sluicegate_body_memory_bytes {bytes}\n")));
        sim.release();
        assert!(stream.finish().whole);
        gate.until("/metrics", |text| text.contains("sluicegate_body_memory_bytes 0\n"));
    }
}

/// What a client sees that writes all of `bytes` before it reads.
fn write_then_read(gate: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gate.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(bytes).expect("all of it is taken");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("no reset");
    answer
}

#[test]
fn a_client_that_writes_first_reads_why_it_is_refused() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "limits: {request_body: 64KiB}\n").healthy();
    let large = vec![b'x'; 24 << 20];
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let announced = format!("{head}content-length: {}\r\n\r\n", large.len());
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n", large.len());
    let unknown = format!("{head}content-encoding: lzma\r\ncontent-length: {}\r\n\r\n", large.len());
    let broken = format!("{head}content-encoding: gzip\r\ncontent-length: 65536\r\n\r\n");
    for (bytes, status) in [
        ([announced.as_bytes(), &large].concat(), "413"),
        ([chunked.as_bytes(), &large, b"\r\n0\r\n\r\n"].concat(), "413"),
        ([unknown.as_bytes(), &large].concat(), "415"),
        ([broken.as_bytes(), &large[..65536]].concat(), "400"),
    ] {
        let answer = write_then_read(&gate, &bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(answer.ends_with('}'), "{answer}");
    }
}
