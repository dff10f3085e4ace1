//! Describes types of the kernel object as text that changes whenever the memory layout does. Names of members are part of
//! it, names of types are not.
//!
//! Source: kernel `Documentation/bpf/btf.rst`.

/// The types of an object, by id.
#[derive(Debug)]
pub struct Types<'a> {
    /// Every type from its first byte on; the first has id 1.
    types: Vec<&'a [u8]>,
    strings: &'a [u8],
}

/// Deeper than any type here; stops at types that contain themselves.
const MAX_DEPTH: usize = 32;
/// Longer than any description here; stops at types that multiply.
const MAX_LENGTH: usize = 64 << 10;

impl<'a> Types<'a> {
    /// Parses a `.BTF` section; `None` if it is malformed.
    #[must_use]
    pub fn parse(section: &'a [u8]) -> Option<Self> {
        let header = |at: usize| word(section, at).map(|word| word as usize);
        let length = header(4)?;
        let part = |at: usize, size: usize| section.get(length + at..)?.get(..size);
        let (mut rest, strings) = (part(header(8)?, header(12)?)?, part(header(16)?, header(20)?)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            types.push(rest);
            rest = rest.get(size_of_type(rest)?..)?;
        }
        Some(Self { types, strings })
    }

    /// Describes type `id`; 0 means no type.
    #[must_use]
    pub fn describe(&self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.write(id, MAX_DEPTH, &mut text)?;
        Some(text)
    }

    fn write(&self, id: u32, depth_left: usize, text: &mut String) -> Option<()> {
        let Some(index) = id.checked_sub(1) else {
            text.push_str("none");
            return Some(());
        };
        let it = *self.types.get(index as usize)?;
        let depth_left = depth_left.checked_sub(1).filter(|_| text.len() <= MAX_LENGTH)?;
        let size = word(it, 8)?;
        match kind(it)? {
            INT => *text += &format!("i{size}"),
            POINTER => text.push('p'),
            FLOAT => *text += &format!("f{size}"),
            ENUM | ENUM64 => *text += &format!("e{size}"),
            ARRAY => {
                *text += &format!("[{}]", word(it, 20)?);
                self.write(word(it, 12)?, depth_left, text)?;
            }
            STRUCT | UNION => {
                *text += &format!("{size}{{");
                for member in 0..count(it)? {
                    let at = 12 + 12 * member;
                    *text += &format!("{}@{}:", self.name(word(it, at)?)?, word(it, at + 8)?);
                    self.write(word(it, at + 4)?, depth_left, text)?;
                    text.push(';');
                }
                text.push('}');
            }
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => self.write(size, depth_left, text)?,
            _ => return None,
        }
        Some(())
    }

    fn name(&self, at: u32) -> Option<&'a str> {
        let text = self.strings.get(at as usize..)?;
        std::str::from_utf8(text.split(|byte| *byte == 0).next()?).ok()
    }
}

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNCTION_PROTOTYPE: u32 = 13;
const VARIABLE: u32 = 14;
const SECTION: u32 = 15;
const FLOAT: u32 = 16;
const DECLARATION_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

fn kind(it: &[u8]) -> Option<u32> {
    Some(word(it, 4)? >> 24 & 0x1f)
}

fn count(it: &[u8]) -> Option<usize> {
    Some(word(it, 4)? as usize & 0xffff)
}

fn size_of_type(it: &[u8]) -> Option<usize> {
    let count = count(it)?;
    let more = match kind(it)? {
        INT | VARIABLE | DECLARATION_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | SECTION | ENUM64 => 12 * count,
        ENUM | FUNCTION_PROTOTYPE => 8 * count,
        _ => 0,
    };
    Some(12 + more)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct { u32 first; u64 second[3]; }`, as a compiler writes it.
    fn section(offset: u32, length: u32) -> Vec<u8> {
        let strings = b"\0u32\0u64\0first\0second\0";
        let types: Vec<u32> = [
            vec![1, INT << 24, 4, 32],
            vec![5, INT << 24, 8, 64],
            vec![0, ARRAY << 24, 0, 2, 1, length],
            vec![0, STRUCT << 24 | 2, 32, 9, 1, 0, 15, 3, offset],
        ]
        .concat();
        let size = 4 * types.len() as u32;
        let header = [0x0001_eb9f, 24, 0, size, size, strings.len() as u32];
        header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain(*strings).collect()
    }

    #[test]
    fn a_layout_is_described_to_the_last_word() {
        let section = section(64, 3);
        let types = Types::parse(&section).unwrap();
        assert_eq!(types.describe(4).unwrap(), "32{first@0:i4;second@64:[3]i8;}");
        assert_eq!(types.describe(0).unwrap(), "none");
        assert_eq!(types.describe(5), None);
    }

    #[test]
    fn types_that_multiply_are_not_written_out() {
        let types: Vec<u32> =
            (0..30_u32).flat_map(|number| vec![0, STRUCT << 24 | 2, 8, 0, number, 0, 0, number, 0]).collect();
        let size = 4 * types.len() as u32;
        let header = [0x0001_eb9f, 24, 0, size, size, 1];
        let section: Vec<u8> = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain([0]).collect();
        let types = Types::parse(&section).unwrap();
        assert_eq!(types.describe(3).unwrap().len(), 7 * 11 + 8 * 4);
        assert_eq!(types.describe(30), None, "a thousand million members");
    }

    #[test]
    fn what_is_cut_short_is_no_description() {
        let whole = section(64, 3);
        for length in 0..whole.len() {
            let types = Types::parse(&whole[..length]);
            assert!(types.is_none_or(|types| types.describe(4).is_none()), "{length} bytes");
        }
    }
}
