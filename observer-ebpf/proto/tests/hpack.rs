//! The kernel's HPACK decoder against an independent encoder and an independent decoder: any fields in any representation,
//! with any table size, cut in any way, yield the same statuses.

mod fixture;

use fixture::{
    Wire,
    frames::{END_STREAM, PREFACE, SETTINGS, Shape, frame, headers},
    xfcc::{self, NAME, Named, named},
};
use httlib_hpack::Encoder;
use observer_common::{Direction, GRPC_NONE, GRPC_UNKNOWN, health::Counter};
use observer_proto::{
    ConnLeg,
    hpack::{EXTENDED_CONNECT, NONE, NOT_POST, REFUSED, RING, TableSize, UNREADABLE, UNRESOLVED, reset},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

/// Any table may be this large.
const LARGEST: u32 = 65_536;

/// One direction's header blocks on a connection, and the decoder that judges their decoder.
struct Judge {
    wire: Wire,
    decoder: loona_hpack::Decoder<'static>,
    direction: Direction,
    stream: Vec<u8>,
    sent: usize,
    number: u32,
    /// What the last block judged had: [`EXTENDED_CONNECT`] and [`NOT_POST`].
    flags: u32,
    /// Its caller.
    caller: Named,
}

/// What the decoder is to find: status, gRPC status, and whether the content type is gRPC's.
type Found = (u32, u64, u32);

impl Judge {
    fn new(direction: Direction) -> Self {
        // What a proxy receives it may refuse; this is what it sends.
        let mut wire = Wire::new(if direction == Direction::Request { ConnLeg::DESTINATION } else { ConnLeg::SOURCE });
        let mut preface = PREFACE.to_vec();
        preface.extend(frame(SETTINGS, 0, 0, &[]));
        wire.deliver(Direction::Request, &preface, 0, preface.len());
        let stream = if direction == Direction::Request { preface } else { frame(SETTINGS, 0, 0, &[]) };
        if direction == Direction::Response {
            wire.deliver(Direction::Response, &stream, 0, stream.len());
        }
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(LARGEST as usize);
        let sent = stream.len();
        Self { wire, decoder, direction, stream, sent, number: 0, flags: 0, caller: Named::Nobody }
    }

    /// Decodes a block and returns what was found.
    fn decode(&mut self, block: &[u8], shape: &Shape, cuts: &[usize]) -> Found {
        self.number += 1;
        self.stream.extend(headers(self.number * 2 - 1, END_STREAM, block, shape));
        for cut in cuts.iter().cycle() {
            if self.sent == self.stream.len() {
                break;
            }
            let to = (self.sent + cut).min(self.stream.len());
            self.wire.deliver(self.direction, &self.stream, self.sent, to);
            self.sent = to;
        }
        let decoder = &self.wire.h.frames[self.direction].decoder;
        (decoder.status, decoder.grpc_status, decoder.content_is_grpc)
    }

    /// What the decoder finds.
    fn judge(&mut self, block: &[u8]) -> Found {
        let mut found = (NONE, GRPC_NONE, NONE);
        self.flags = 0;
        self.caller = Named::Nobody;
        for (name, value) in self.decoder.decode(block).expect("a valid block") {
            match &name[..] {
                b":status" => found.0 = status_of(&value),
                b":protocol" => self.flags |= EXTENDED_CONNECT,
                b":method" if &value[..] != b"POST" => self.flags |= NOT_POST,
                b"x-forwarded-client-cert" => self.caller = named(&value),
                b"grpc-status" => found.1 = grpc_status_of(&value),
                b"content-type" => {
                    found.2 = u32::from(&value[..] == b"application/grpc" || value.starts_with(b"application/grpc+"));
                }
                _ => {}
            }
        }
        found
    }

    /// The caller that was found; only of requests it is read.
    fn caller(&self) -> Named {
        match self.wire.h.frames[self.direction].decoder.caller as u16 {
            0 => Named::Nobody,
            u16::MAX => Named::Unreadable,
            id => {
                let caller = &self.wire.env.callers[usize::from(id) - 1];
                Named::Caller(caller.text[..caller.length as usize].to_vec())
            }
        }
    }

    fn losses(&self) -> u64 {
        self.wire.env.count_of(Counter::DesyncMalformed)
    }
}

/// A status as it is read: three digits.
fn status_of(value: &[u8]) -> u32 {
    let digits = value.len() == 3 && value.iter().all(u8::is_ascii_digit);
    let number = || std::str::from_utf8(value).unwrap().parse().unwrap();
    if digits { number() } else { UNREADABLE }
}

/// A status of gRPC as it is read: a number of 32 bits, which may have a sign and leading zeros, in sixteen bytes.
fn grpc_status_of(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= 16);
    // As it happens, this is what Rust takes for one too.
    text.and_then(|text| text.parse::<u32>().ok()).map_or(GRPC_UNKNOWN, u64::from)
}

/// One field and how it is written.
#[derive(Clone, Debug)]
enum Field {
    /// Indexed, or with its name's index, if the table has it.
    Best(String, String, u8),
    /// With its name spelt out.
    Literal(String, String, u8),
    /// With the index of a name, anywhere in the table, modulo its length.
    Named(Index, String, u8),
    /// Indexed, anywhere in the table, modulo its length.
    Indexed(Index),
    /// Not a field: a change of the table's size; only in front of fields.
    Size(u32),
}

impl Field {
    fn write(&self, encoder: &mut Encoder, block: &mut Vec<u8>) {
        // The encoder does not announce how long its table is, but refuses what is beyond.
        let length = |encoder: &Encoder| {
            let (mut low, mut high) = (61, 61 + LARGEST / 32 + 1);
            while high - low > 1 {
                let middle = (low + high) / 2;
                if encoder.encode_indexed(middle, &mut Vec::new()).is_ok() { low = middle } else { high = middle }
            }
            low as usize
        };
        match self {
            Self::Best(name, value, flags) => encoder
                .encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags | Encoder::BEST_FORMAT), block),
            Self::Literal(name, value, flags) => {
                encoder.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), *flags), block)
            }
            Self::Named(index, value, flags) => {
                let index = index.index(length(encoder)) as u32 + 1;
                encoder.encode((index, value.as_bytes().to_vec(), *flags), block)
            }
            Self::Indexed(index) => encoder.encode(index.index(length(encoder)) as u32 + 1, block),
            Self::Size(size) => encoder.update_max_dynamic_size(*size, block),
        }
        .expect("a field");
    }
}

fn flags() -> impl Strategy<Value = u8> {
    let form = prop_oneof![3 => Just(Encoder::WITH_INDEXING), 1 => Just(Encoder::NEVER_INDEXED), 1 => Just(0)];
    (form, 0..4u8).prop_map(|(form, huffman)| form | huffman)
}

fn status() -> impl Strategy<Value = String> {
    prop_oneof![
        (100..1000u16).prop_map(|status| status.to_string()),
        (0..17u16).prop_map(|status| status.to_string()),
        prop::sample::select(vec![
            "40103",
            "4294967295",
            "4294967296",
            "00000000000000005",
            "0000000000000005",
            "+5",
            "-1",
            "5 "
        ])
        .prop_map(str::to_owned),
        "\\+?[0-9]{0,6}",
        "[ -~]{0,5}",
        "[a-z]{30,70}",
    ]
}

fn content_type() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("application/grpc".to_owned()),
        "application/grpc\\+[a-z]{0,20}",
        "application/grpc[ -~]{0,4}",
        "application/[a-z]{0,6}",
        "[ -~]{0,40}",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[ -~]{0,40}", 1 => "[a-z]{120,300}", 1 => status(), 1 => content_type()]
}

fn pair() -> impl Strategy<Value = (String, String)> {
    let near = prop_oneof![
        Just(":statut"),
        Just(":protocol"),
        Just(":protocom"),
        Just("grpc-statut"),
        Just("grpc-status-x"),
        Just("content-typo"),
        Just("content-types"),
        Just(":path"),
        Just("x")
    ];
    prop_oneof![
        3 => status().prop_map(|value| (":status".to_owned(), value)),
        3 => status().prop_map(|value| ("grpc-status".to_owned(), value)),
        3 => content_type().prop_map(|value| ("content-type".to_owned(), value)),
        3 => xfcc::value().prop_map(|value| (NAME.to_owned(), value)),
        2 => (near, value()).prop_map(|(name, value)| (name.to_owned(), value)),
        3 => ("[a-z-]{0,14}", value()),
    ]
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        4 => (pair(), flags()).prop_map(|((name, value), flags)| Field::Best(name, value, flags)),
        3 => (pair(), flags()).prop_map(|((name, value), flags)| Field::Literal(name, value, flags)),
        2 => (any::<Index>(), value(), flags()).prop_map(|(index, value, flags)| Field::Named(index, value, flags)),
        3 => any::<Index>().prop_map(Field::Indexed),
    ]
}

fn block(largest: u32) -> impl Strategy<Value = Vec<Field>> {
    let sizes = prop_oneof![Just(0), 1..200u32, Just(4_096), 0..largest + 1, Just(largest)];
    (vec(sizes.prop_map(Field::Size), 0..2), vec(field(), 1..30)).prop_map(|(sizes, fields)| [sizes, fields].concat())
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::option::of(any::<u8>()), any::<bool>(), vec(0..60usize, 0..8))
        .prop_map(|(padding, priority, fragments)| Shape { padding, priority, fragments })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..20usize, 1..400usize, Just(1), Just(3_000)], 1..40)
}

fn agree(direction: Direction, blocks: &[(Vec<Field>, Shape)], cuts: &[usize]) -> Result<Judge, TestCaseError> {
    let mut encoder = Encoder::default();
    let mut judge = Judge::new(direction);
    for (number, (fields, shape)) in blocks.iter().enumerate() {
        let mut block = Vec::new();
        for field in fields {
            field.write(&mut encoder, &mut block);
        }
        let expected = judge.judge(&block);
        let found = judge.decode(&block, shape, cuts);
        let decoder = &judge.wire.h.frames[direction].decoder;
        // Of large ones, only so many are remembered.
        let forgotten = found.1 == GRPC_UNKNOWN && expected.1 >= u64::from(UNREADABLE) && decoder.large_count == 7;
        let expected = if forgotten { (expected.0, GRPC_UNKNOWN, expected.2) } else { expected };
        prop_assert_eq!(found, expected, "block {} {:?}", number, judge.wire.env.counts);
        prop_assert_eq!(decoder.flags & !REFUSED, judge.flags);
        let caller = if direction == Direction::Request { judge.caller.clone() } else { Named::Nobody };
        prop_assert_eq!(judge.caller(), caller);
        prop_assert_eq!(judge.losses(), 0);
    }
    Ok(judge)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_representation_and_segmentation_yields_what_the_decoder_finds(
        blocks in vec((block(4_096), shape()), 1..12), cuts in cuts(), direction in select(Direction::BOTH.to_vec()),
    ) {
        let judge = agree(direction, &blocks, &cuts)?;
        prop_assert_eq!(judge.wire.h.frames[direction].decoder.table_size, TableSize::RING);
        prop_assert!(judge.wire.env.tables.is_none());
    }

    #[test]
    fn a_larger_table_yields_what_the_decoder_finds(
        blocks in vec((block(LARGEST), shape()), 1..30), cuts in cuts(), direction in select(Direction::BOTH.to_vec()),
    ) {
        agree(direction, &blocks, &cuts)?;
    }
}

/// Indices into the dynamic table that a block has (section 6), and how many insertions it makes before each.
fn dynamic_indices(mut block: &[u8]) -> Vec<(u32, u32)> {
    fn integer(block: &mut &[u8], bits: u32) -> u32 {
        let mask = (1u32 << bits) - 1;
        let mut value = u32::from(block[0]) & mask;
        *block = &block[1..];
        if value == mask {
            for shift in (0..).step_by(7) {
                let byte = u32::from(block[0]);
                *block = &block[1..];
                value += (byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        value
    }
    let (mut found, mut inserted) = (Vec::new(), 0);
    while let Some(&first) = block.first() {
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(&mut block, bits);
        if index >= 62 && !(0x20..0x40).contains(&first) {
            found.push((index - 62, inserted));
        }
        if literal {
            for _ in usize::from(index != 0)..2 {
                let length = integer(&mut block, 7) as usize;
                block = &block[length..];
            }
        }
        inserted += u32::from((0x40..0x80).contains(&first));
    }
    found.push((0, inserted));
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// A decoder that begins in the middle of a connection: blocks that name nothing from before are read exactly, and of others
    /// nothing is claimed but what they say.
    #[test]
    fn what_was_inserted_since_is_known_whatever_was_before(
        before in vec(block(LARGEST), 0..20), after in vec((block(LARGEST), shape()), 1..20), cuts in cuts(), direction in select(Direction::BOTH.to_vec()),
    ) {
        let mut encoder = Encoder::default();
        let mut judge = Judge::new(direction);
        for fields in before {
            let mut block = Vec::new();
            fields.iter().for_each(|field| field.write(&mut encoder, &mut block));
            judge.judge(&block);
        }
        reset(&mut judge.wire.h.frames[direction].decoder);
        let mut since = 0;
        // Of an entry under a name from before only that it is there is known.
        let mut doubtful = Vec::new();
        for (fields, shape) in after {
            let mut block = Vec::new();
            fields.iter().for_each(|field| field.write(&mut encoder, &mut block));
            let mut said = Vec::new();
            judge.decoder.decode_with_cb(&block, |name, value| said.push((name.to_vec(), value.to_vec()))).expect("a block");
            let mut indices = dynamic_indices(&block);
            let inserted = indices.pop().map_or(0, |last| last.1);
            // Or further back than is remembered where nobody said that the table is so large.
            let old = indices.iter().any(|&(back, here)| back >= since + here || back >= RING as u32);
            let names_doubtful = indices.iter().any(|&(back, here)| doubtful.contains(&(since + here).wrapping_sub(1 + back)));
            if old || names_doubtful {
                doubtful.extend(since..since + inserted);
            }
            since += inserted;
            let found = judge.decode(&block, &shape, &cuts);
            prop_assert_eq!(judge.losses(), 0);
            let decoder = &judge.wire.h.frames[direction].decoder;
            let said = |wanted: &'static [u8]| {
                said.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| value.as_slice())
            };
            let statuses: Vec<u32> = said(b":status").map(status_of).collect();
            let grpc: Vec<u64> = said(b"grpc-status").map(grpc_status_of).collect();
            let unsure = decoder.flags & UNRESOLVED != 0;
            prop_assert!(!unsure || old || names_doubtful, "nothing of it is from before");
            prop_assert!(found.0 == NONE && unsure || found.0 == statuses.last().copied().unwrap_or(NONE) || unsure && statuses.contains(&found.0));
            let few = found.1 == GRPC_UNKNOWN && decoder.large_count == 7;
            prop_assert!(
                few || found.1 == GRPC_NONE && unsure || found.1 == grpc.last().copied().unwrap_or(GRPC_NONE) || unsure && grpc.contains(&found.1)
            );
        }
    }
}

/// Walks blocks given in hexadecimal, one connection for all of them.
fn decode_all(direction: Direction, blocks: &[&str], size: Option<u32>) -> Vec<Found> {
    let mut judge = Judge::new(direction);
    if let Some(size) = size {
        judge.decoder.set_max_table_size(size as usize);
    }
    let decode = |block: &&str| {
        let digits: Vec<u8> = block.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let block: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect("two digits"))
            .collect();
        let expected = judge.judge(&block);
        let found = judge.decode(&block, &Shape::default(), &[1]);
        assert_eq!(found, expected, "{block:x?}");
        found
    };
    blocks.iter().map(decode).collect()
}

#[test]
fn the_examples_of_rfc_7541_c_2_to_c_4_are_decoded() {
    let nothing = (NONE, GRPC_NONE, NONE);
    for single in [
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "040c 2f73 616d 706c 652f 7061 7468",
        "1008 7061 7373 776f 7264 0673 6563 7265 74",
        "82",
    ] {
        assert_eq!(decode_all(Direction::Request, &[single], None), [nothing]);
    }
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    assert_eq!(decode_all(Direction::Request, &plain, None), [nothing; 3]);
    assert_eq!(decode_all(Direction::Request, &huffman, None), [nothing; 3]);
}

#[test]
fn the_examples_of_rfc_7541_c_5_and_c_6_are_decoded_with_evictions() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let expected = [302, 307, 200].map(|status| (status, GRPC_NONE, NONE));
    assert_eq!(decode_all(Direction::Response, &plain, Some(256)), expected);
    assert_eq!(decode_all(Direction::Response, &huffman, Some(256)), expected);
}

#[test]
fn every_status_is_read_plain_and_huffman_coded_and_from_the_table() {
    let mut encoder = Encoder::default();
    let mut judge = Judge::new(Direction::Response);
    let numbers = (100..=999).map(|status| (":status", status)).chain((0..=16).map(|status| ("grpc-status", status)));
    for (name, status) in numbers {
        for flags in 0..4 {
            for form in [Encoder::WITH_INDEXING, Encoder::WITH_INDEXING | Encoder::BEST_FORMAT] {
                let mut block = Vec::new();
                let field = (name.as_bytes().to_vec(), status.to_string().into_bytes(), flags | form);
                encoder.encode(field, &mut block).unwrap();
                let found = judge.decode(&block, &Shape::default(), &[block.len() + 9]);
                let expected = if name == ":status" { (status, GRPC_NONE, NONE) } else { (NONE, status.into(), NONE) };
                assert_eq!(found, expected, "{name} {status} {flags} {form}");
            }
        }
    }
}

#[test]
fn ninety_seven_statuses_live_in_a_table_of_4096_bytes() {
    let mut encoder = Encoder::default();
    let mut judge = Judge::new(Direction::Response);
    let mut block = Vec::new();
    for status in 300..397 {
        let field = (b":status".to_vec(), status.to_string().into_bytes(), Encoder::WITH_INDEXING);
        encoder.encode(field, &mut block).unwrap();
    }
    judge.decode(&block, &Shape::default(), &[4_000]);
    for status in 300..397 {
        let mut block = Vec::new();
        let field = (b":status".to_vec(), status.to_string().into_bytes(), Encoder::BEST_FORMAT);
        encoder.encode(field, &mut block).unwrap();
        assert!(block.len() <= 2 && block[0] & 0x80 != 0, "indexed");
        assert_eq!(judge.decode(&block, &Shape::default(), &[9]), (status, GRPC_NONE, NONE));
    }
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut encoder = Encoder::default();
    let mut judge = Judge::new(Direction::Response);
    let literal = |name: &str, value: &str| Field::Literal(name.to_owned(), value.to_owned(), Encoder::WITH_INDEXING);
    let best = |name: &str, value: &str| Field::Best(name.to_owned(), value.to_owned(), Encoder::WITH_INDEXING);
    let mut block = Vec::new();
    for field in [literal(":status", "401"), literal("x-large", &"x".repeat(5_000)), literal(":status", "402")] {
        field.write(&mut encoder, &mut block);
    }
    assert_eq!(judge.judge(&block), judge.decode(&block, &Shape::default(), &[700]));
    let mut block = Vec::new();
    for field in [best(":status", "402"), best("grpc-status", "7"), best("grpc-status", "7")] {
        field.write(&mut encoder, &mut block);
    }
    assert_eq!(block.last(), Some(&0xbe));
    assert_eq!(judge.judge(&block), (402, 7, NONE));
    assert_eq!(judge.decode(&block, &Shape::default(), &[700]), (402, 7, NONE));
}

/// A table of 8,192 bytes whose oldest entry, of more than the ring can hold, is a status.
fn far(judge: &mut Judge) -> Encoder<'static> {
    let mut encoder = Encoder::default();
    let mut block = Vec::new();
    Field::Size(8_192).write(&mut encoder, &mut block);
    Field::Literal(":status".into(), "418".into(), Encoder::WITH_INDEXING).write(&mut encoder, &mut block);
    for number in 0..150 {
        Field::Literal("a".into(), number.to_string(), Encoder::WITH_INDEXING).write(&mut encoder, &mut block);
    }
    judge.decode(&block, &Shape::default(), &[10_000]);
    encoder
}

#[test]
fn a_larger_table_is_kept_in_a_large_table() {
    let mut judge = Judge::new(Direction::Response);
    let mut encoder = far(&mut judge);
    let mut block = Vec::new();
    Field::Best(":status".into(), "418".into(), 0).write(&mut encoder, &mut block);
    assert_eq!(judge.decode(&block, &Shape::default(), &[1]), (418, GRPC_NONE, NONE));
    assert_eq!(judge.wire.h.frames[Direction::Response].decoder.table_size, TableSize::LARGE);
    assert_eq!(judge.wire.env.count_of(Counter::LossTables), 0);
}

#[test]
fn without_room_for_a_large_table_what_is_far_is_unsure() {
    let mut judge = Judge::new(Direction::Response);
    judge.wire.env.is_full = true;
    let mut encoder = far(&mut judge);
    assert_eq!(judge.wire.env.count_of(Counter::LossTables), 1);
    assert_eq!(judge.wire.h.frames[Direction::Response].decoder.table_size, TableSize::LARGE_MISSING);
    let mut walk = |field: Field| {
        let mut block = Vec::new();
        field.write(&mut encoder, &mut block);
        let found = judge.decode(&block, &Shape::default(), &[1]);
        (found.0, judge.wire.h.frames[Direction::Response].decoder.flags & UNRESOLVED)
    };
    let best = |value: &str| Field::Best(":status".into(), value.into(), Encoder::WITH_INDEXING);
    assert_eq!(walk(best("418")), (NONE, 1), "an index out of reach");
    assert_eq!(walk(best("419")), (419, 0), "a name that has an index of its own");
    assert_eq!(walk(best("419")), (419, 0));
}

#[test]
fn what_was_inserted_under_a_name_out_of_reach_stays_unsure() {
    let mut judge = Judge::new(Direction::Response);
    judge.wire.env.is_full = true;
    let mut encoder = far(&mut judge);
    // The oldest entry's name is that of the status.
    let mut block = Vec::new();
    encoder.encode((62 + 150, b"420".to_vec(), Encoder::WITH_INDEXING), &mut block).unwrap();
    assert_eq!(judge.decode(&block, &Shape::default(), &[1]), (NONE, GRPC_NONE, NONE));
    assert_eq!(judge.wire.h.frames[Direction::Response].decoder.flags & UNRESOLVED, UNRESOLVED);
    assert_eq!(judge.decode(&[0xbe], &Shape::default(), &[1]), (NONE, GRPC_NONE, NONE));
    assert_eq!(judge.wire.h.frames[Direction::Response].decoder.flags & UNRESOLVED, UNRESOLVED);
}
