//! Builds the guest image with a cargo of its own: it is another program, with another linker script and profile.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let guest = manifest_dir.join("guest");
    // Not the whole folder: a developer's own `target` in there must not cause rebuilds.
    for part in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld", ".cargo"] {
        println!("cargo::rerun-if-changed={}", guest.join(part).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let target_dir = out_dir.join("guest-target");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.current_dir(&guest).args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target_dir);
    // What the outer cargo says about this build (flags, wrappers, features) is not meant for the image.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO_FEATURE_")
            || text.starts_with("CARGO_CFG_")
            || text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_")
            || text.starts_with("CARGO_TARGET_")
            || matches!(
                text.as_ref(),
                "RUSTFLAGS"
                    | "CARGO_ENCODED_RUSTFLAGS"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "CARGO_MAKEFLAGS"
                    | "MAKEFLAGS"
                    | "CARGO_MANIFEST_DIR"
                    | "CARGO_MANIFEST_PATH"
                    | "__CARGO_DEFAULT_LIB_METADATA"
            );
        if ours {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building the guest image failed: {status}");

    let built = target_dir.join(TARGET).join("release/probe");
    fs::copy(&built, out_dir.join("probe.elf")).expect("the image was built and OUT_DIR is writable");
}
