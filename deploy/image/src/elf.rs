//! What a program or library is linked to, from its ELF headers: unlike `ldd`, works for any architecture and runs nothing.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use object::{
    Endianness, FileKind,
    elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, FileHeader64, PT_INTERP},
    read::elf::{FileHeader as _, ProgramHeader as _},
};

/// An ELF file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Architecture, as OCI (and Go) spell it.
    pub(crate) architecture: &'static str,
    /// The same, as Debian's directories spell it.
    pub(crate) triplet: &'static str,
    /// Absolute path of the dynamic loader; static programs and libraries have none.
    pub(crate) loader: Option<String>,
    /// File names of the libraries that it needs.
    pub(crate) needed: Vec<String>,
}

impl Program {
    /// Reads the headers of a file.
    ///
    /// # Errors
    /// It cannot be read, or is not for 64-bit x86 or ARM.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{}: not a program that an image can be made of", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        if FileKind::parse(bytes)? != FileKind::Elf64 {
            bail!("not a 64-bit ELF file");
        }
        let header = FileHeader64::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        let (architecture, triplet) = match header.e_machine(endian) {
            EM_X86_64 => ("amd64", "x86_64-linux-gnu"),
            EM_AARCH64 => ("arm64", "aarch64-linux-gnu"),
            other => bail!("machine {other} of ELF is neither x86_64 nor aarch64"),
        };
        let mut program = Self { architecture, triplet, loader: None, needed: Vec::new() };
        let segments = header.program_headers(endian, bytes)?;
        for segment in segments.iter().filter(|segment| segment.p_type(endian) == PT_INTERP) {
            let path = segment.data(endian, bytes).ok().context("its loader is outside of the file")?;
            program.loader =
                Some(String::from_utf8(path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())?);
        }
        let sections = header.sections(endian, bytes)?;
        if let Some((entries, strings)) = sections.dynamic(endian, bytes)? {
            let strings = sections.strings(endian, bytes, strings)?;
            for entry in entries.iter().filter(|entry| entry.d_tag.get(endian) == DT_NEEDED) {
                let offset = u32::try_from(entry.d_val.get(endian))?;
                let name = strings.get(offset).ok().context("the name of a library is outside of the file")?;
                program.needed.push(String::from_utf8(name.to_vec())?);
            }
        }
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused_with_the_reason() {
        for (bytes, reason) in
            [(&b"#!/bin/sh\n"[..], "Unknown file magic"), (b"\x7fELF\x01\x01\x01", "not a 64-bit ELF")]
        {
            let mut padded = bytes.to_vec();
            padded.resize(64, 0);
            let error = format!("{:#}", Program::parse(&padded).expect_err("not a program"));
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let own = fs::read(std::env::current_exe().expect("this test")).expect("readable");
        Program::parse(&own).expect("a program");
        for length in [0, 16, 63, 64, 200, 1000] {
            Program::parse(&own[..length]).expect_err("too short");
        }
    }
}
