//! Embeds the kernel objects that `cargo xtask build` made, without and with the reading of traces; without them empty
//! stubs, which `observer` refuses to load with a message that says how to get them. So editors, clippy and host tests need no BPF toolchain.
use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=OBSERVER_KERNEL_OBJECT");
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = env::var_os("OBSERVER_KERNEL_OBJECT").map(PathBuf::from);
    for suffix in ["o", "traces.o"] {
        let embedded = directory.join("kernel").with_extension(suffix);
        match object.as_ref().map(|object| object.with_extension(suffix)) {
            Some(object) => {
                println!("cargo:rerun-if-changed={}", object.display());
                fs::copy(&object, &embedded).unwrap_or_else(|error| panic!("{}: {error}", object.display()));
            }
            None => fs::write(&embedded, []).expect("OUT_DIR is writable"),
        }
    }
}
