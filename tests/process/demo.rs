//! `sluicegate demo`, from its first line to its last.

use std::{io::Read, process::Stdio};

use crate::kit::{Process, alone};

#[test]
fn the_demo_tells_what_happened_and_loses_nothing() {
    let _turn = alone();
    let arguments = ["demo", "--listen", "127.0.0.1:0", "--interval", "3s", "--cycles", "1"];
    let mut demo = Process::start(&arguments, Stdio::piped());
    let mut told = String::new();
    demo.stdout().read_to_string(&mut told).unwrap();
    let code = demo.ended().code();
    println!("{told}");
    assert_eq!(code, Some(0), "{told}\n{}", demo.said());
    let kept = "5 clients ask the same at once: 1 stream computed";
    for words in ["curl ", "/v1/chat/completions", "spot-a", kept, "4 share it live; asked again, it is a hit"] {
        assert!(told.contains(words), "{words} in {told}");
    }
}

#[test]
fn the_demo_ends_cleanly_at_sigterm() {
    let _turn = alone();
    let mut demo = Process::start(&["demo", "--listen", "127.0.0.1:0"], Stdio::piped());
    let mut stdout = demo.stdout();
    let mut first = [0; 16];
    stdout.read_exact(&mut first).unwrap();
    demo.signal("TERM");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(demo.ended().code(), Some(0), "{rest}\n{}", demo.said());
}
