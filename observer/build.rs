//! Embeds the kernel object that `cargo xtask build` made; without one an empty stub, which `observer` refuses to load
//! with a message that says how to get it. So editors, clippy and host tests need no BPF toolchain.
use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=OBSERVER_KERNEL_OBJECT");
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernel.o");
    match env::var_os("OBSERVER_KERNEL_OBJECT").map(PathBuf::from) {
        Some(object) => {
            println!("cargo:rerun-if-changed={}", object.display());
            fs::copy(&object, &embedded).unwrap_or_else(|error| panic!("{}: {error}", object.display()));
        }
        None => fs::write(&embedded, []).expect("OUT_DIR is writable"),
    }
}
