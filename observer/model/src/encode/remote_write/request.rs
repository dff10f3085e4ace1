//! Requests of remote write 2.0: a table of texts, and series that refer to it.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::labels::{BOUND, NAME};
use crate::encode::{
    Batch, Form,
    wire::{Field, Fields, packed, put_bytes, put_length, put_uint, put_varint},
};

/// Fields of a request.
const SYMBOLS: u32 = 4;
const TIMESERIES: u32 = 5;
/// Fields of a series.
pub(super) const LABELS: u32 = 1;
pub(super) const SAMPLES: u32 = 2;
pub(super) const HISTOGRAMS: u32 = 3;
pub(super) const EXEMPLARS: u32 = 4;
pub(super) const METADATA: u32 = 5;
/// Fields of a series' metadata that refer to texts.
pub(super) const HELP: u32 = 3;
pub(super) const UNIT: u32 = 4;

/// References to the names of a sample's own labels, which are in every request, as is the empty text before them.
pub(super) const NAME_SYMBOL: u32 = 1;
pub(super) const BOUND_SYMBOL: u32 = 2;

/// The texts of a request.
#[derive(Debug)]
pub(super) struct Symbols {
    references: HashMap<Box<str>, u32, RandomState>,
    /// Encoded, with their keys.
    table: Vec<u8>,
}

impl Symbols {
    fn new() -> Self {
        let mut symbols = Self { references: HashMap::default(), table: Vec::new() };
        for text in ["", NAME, BOUND] {
            symbols.get(text);
        }
        symbols
    }

    /// Returns the reference to a text.
    pub(super) fn get(&mut self, text: &str) -> u32 {
        if let Some(known) = self.references.get(text) {
            return *known;
        }
        let new = u32::try_from(self.references.len()).unwrap_or(u32::MAX);
        self.references.insert(text.into(), new);
        put_bytes(&mut self.table, SYMBOLS, text.as_bytes());
        new
    }
}

/// A request that is put together.
#[derive(Debug)]
pub(super) struct RequestBuilder {
    pub(super) symbols: Symbols,
    /// Encoded series, with their keys.
    pub(super) series: Vec<u8>,
    pub(super) samples: u64,
}

impl RequestBuilder {
    pub(super) fn new() -> Self {
        Self { symbols: Symbols::new(), series: Vec::new(), samples: 0 }
    }

    /// Appends a series of this length with one sample, which `write` writes.
    pub(super) fn add(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        put_length(&mut self.series, TIMESERIES, length);
        write(&mut self.series);
        self.samples += 1;
    }

    pub(super) fn size(&self) -> usize {
        self.symbols.table.len() + self.series.len()
    }

    /// Returns the request, and begins another one; `None` without samples.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let Self { symbols: Symbols { table: mut body, .. }, series, samples } = std::mem::replace(self, Self::new());
        body.extend_from_slice(&series);
        (samples > 0).then(|| Batch { body: body.into(), points: samples, form: Form::RemoteWrite })
    }
}

/// Texts and series of a request.
pub(super) struct Request<'a> {
    pub(super) symbols: Vec<&'a str>,
    pub(super) series: Vec<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads a request; `None` if it is malformed.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (mut symbols, mut series) = (Vec::new(), Vec::new());
        let mut fields = Fields::new(body);
        for (field, value, _) in fields.by_ref() {
            match (field, value) {
                (SYMBOLS, Field::Bytes(text)) => symbols.push(std::str::from_utf8(text).ok()?),
                (TIMESERIES, Field::Bytes(message)) => series.push(message),
                _ => return None,
            }
        }
        fields.is_whole().then_some(Self { symbols, series })
    }

    /// Returns the text at a reference.
    pub(super) fn symbol(&self, reference: u64) -> Option<&'a str> {
        self.symbols.get(usize::try_from(reference).ok()?).copied()
    }
}

/// Splits a request in half between series; `None` if it has only one, or is malformed.
pub fn split(batch: &Batch) -> Option<(Batch, Batch)> {
    let request = Request::parse(&batch.body)?;
    let half = |series: &[&[u8]]| {
        let mut builder = RequestBuilder::new();
        series.iter().try_for_each(|series| copy(&request, series, &mut builder))?;
        builder.take()
    };
    let (first, second) = request.series.split_at(request.series.len() / 2);
    Some((half(first)?, half(second)?))
}

/// Copies a series to another request, which has a table of its own.
fn copy(request: &Request<'_>, series: &[u8], builder: &mut RequestBuilder) -> Option<()> {
    let mut copied = Vec::with_capacity(series.len());
    for (field, value, range) in Fields::new(series) {
        match (field, value) {
            (LABELS, Field::Bytes(references)) => {
                put_bytes(&mut copied, LABELS, &copy_references(request, references, builder)?);
            }
            (EXEMPLARS, Field::Bytes(exemplar)) => {
                let mut own = Vec::with_capacity(exemplar.len());
                for (field, value, range) in Fields::new(exemplar) {
                    match (field, value) {
                        (LABELS, Field::Bytes(references)) => {
                            put_bytes(&mut own, LABELS, &copy_references(request, references, builder)?);
                        }
                        _ => own.extend_from_slice(exemplar.get(range)?),
                    }
                }
                put_bytes(&mut copied, EXEMPLARS, &own);
            }
            (METADATA, Field::Bytes(metadata)) => {
                let mut own = Vec::with_capacity(metadata.len());
                for (field, value, range) in Fields::new(metadata) {
                    match (field, value) {
                        (HELP | UNIT, Field::Varint(reference)) => {
                            put_uint(&mut own, field, builder.symbols.get(request.symbol(reference)?).into());
                        }
                        _ => own.extend_from_slice(metadata.get(range)?),
                    }
                }
                put_bytes(&mut copied, METADATA, &own);
            }
            _ => copied.extend_from_slice(series.get(range)?),
        }
    }
    builder.add(copied.len(), |out| out.extend_from_slice(&copied));
    Some(())
}

/// Returns references to the same texts in the table of another request.
fn copy_references(request: &Request<'_>, references: &[u8], builder: &mut RequestBuilder) -> Option<Vec<u8>> {
    let mut own = Vec::with_capacity(references.len());
    for reference in packed(references) {
        put_varint(&mut own, builder.symbols.get(request.symbol(reference?)?).into());
    }
    Some(own)
}
