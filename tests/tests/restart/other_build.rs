//! Another build of the observer with other programs and the same maps: the tested one with another
//! number in it, as if it had been compiled with that.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use harness::tools;
use observer_proto::reassembly::LEASE_NS;

/// Writes it into `directory`.
pub(super) fn other_build(directory: &Path) -> Result<PathBuf> {
    let mut program = fs::read(tools::observer()?)?;
    let (known, other) = (load(LEASE_NS), load(LEASE_NS + 1_000_000_000));
    let places: Vec<usize> =
        program.windows(known.len()).enumerate().filter(|(_, it)| is_load(it, &known)).map(|(at, _)| at).collect();
    ensure!(!places.is_empty(), "no program loads the number {LEASE_NS}: change another number here");
    for at in places {
        let register = program[at + 1];
        program[at..at + other.len()].copy_from_slice(&other);
        program[at + 1] = register;
    }
    let path = directory.join("other-observer");
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Returns the instruction that loads a 64-bit number into register 0 [kernel bpf/standardization/instruction-set.rst].
fn load(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = 0x18;
    bytes[4..8].copy_from_slice(&number.to_le_bytes()[..4]);
    bytes[12..].copy_from_slice(&number.to_le_bytes()[4..]);
    bytes
}

/// Accepts any register.
fn is_load(bytes: &[u8], instruction: &[u8]) -> bool {
    bytes[0] == instruction[0] && bytes[2..] == instruction[2..]
}
