//! Asks the linker for packed relative relocations where the system's loader knows them.
//!
//! A position-independent program of this size has 16,000 pointers that the loader adjusts at start. As a plain list they
//! take 380 KiB, all of which are read then and stay resident; packed, 8 KiB. Measured: docs/benchmarks.md.

use std::{env, process::Command};

/// The first GNU C library that reads them.
const FIRST: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let of = |name: &str| env::var(name).unwrap_or_default();
    // A program that is built for another machine may meet an older loader, which would refuse it. Elsewhere than on
    // x86-64 the usual linker does not know the option.
    let native = of("HOST") == of("TARGET") && of("TARGET") == "x86_64-unknown-linux-gnu";
    if native && glibc().is_some_and(|version| version >= FIRST) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// This machine's: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let digits = |part: &str| part.split('.').next()?.parse().ok();
    Some((digits(major)?, digits(minor)?))
}
