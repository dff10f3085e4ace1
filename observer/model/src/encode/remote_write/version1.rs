//! Conversion to remote write 1.0, which repeats all texts and has neither metadata nor times of creation. Native
//! histograms are left out: receivers skip them unseen, or refuse all that is with them.

use super::request::{EXEMPLARS, HISTOGRAMS, LABELS, Request, SAMPLES};
use crate::encode::wire::{Field, Fields, packed, put_bytes, put_double, put_message, put_pair, put_uint};

/// Maximum size of a converted request: batches of this encoder stay far below, files of others may not.
const MAX_BYTES: usize = 64 << 20;

/// A request of 1.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version1 {
    /// The request, without compression.
    pub body: Vec<u8>,
    /// Number of native histograms that are not in it.
    pub left_out: u64,
}

/// Converts a request of 2.0; `None` if it is malformed or too large.
#[must_use]
pub fn version_1(body: &[u8]) -> Option<Version1> {
    let request = Request::parse(body)?;
    let mut out = Vec::with_capacity(body.len().saturating_mul(4));
    let mut left_out = 0;
    let (mut labels, mut samples, mut exemplars) = (Vec::new(), Vec::new(), Vec::new());
    for series in &request.series {
        labels.clear();
        samples.clear();
        exemplars.clear();
        let mut has_histogram = false;
        for (field, value, _) in Fields::new(series) {
            match (field, value) {
                (LABELS, Field::Bytes(references)) => {
                    for reference in packed(references) {
                        labels.push(request.symbol(reference?)?);
                    }
                }
                (SAMPLES, Field::Bytes(sample)) => samples.push(self::sample(sample)),
                (EXEMPLARS, Field::Bytes(exemplar)) => exemplars.push(converted(exemplar, &request)?),
                (HISTOGRAMS, _) => has_histogram = true,
                _ => {}
            }
        }
        if has_histogram {
            left_out += 1;
            continue;
        }
        if labels.iter().map(|text| text.len() + 4).sum::<usize>() > MAX_BYTES.saturating_sub(out.len()) {
            return None;
        }
        put_message(&mut out, 1, |out| {
            for pair in labels.chunks_exact(2) {
                let [name, value] = pair else { continue };
                put_pair(out, 1, name, value);
            }
            for exemplar in &exemplars {
                put_bytes(out, 3, exemplar);
            }
            for (value, at) in &samples {
                put_message(out, 2, |out| {
                    put_double(out, 1, *value);
                    put_uint(out, 2, *at);
                });
            }
        });
    }
    Some(Version1 { body: out, left_out })
}

/// Returns an exemplar with its texts; the other fields are the same.
fn converted(exemplar: &[u8], request: &Request<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(128);
    for (field, content, range) in Fields::new(exemplar) {
        let (LABELS, Field::Bytes(references)) = (field, content) else {
            out.extend_from_slice(exemplar.get(range)?);
            continue;
        };
        let texts = packed(references).map(|own| request.symbol(own?)).collect::<Option<Vec<_>>>()?;
        for pair in texts.chunks_exact(2) {
            let [name, value] = pair else { continue };
            put_pair(&mut out, 1, name, value);
        }
    }
    Some(out)
}

/// Returns value and time of a sample.
fn sample(sample: &[u8]) -> (f64, u64) {
    let (mut value, mut at) = (0.0, 0);
    for (field, content, _) in Fields::new(sample) {
        match (field, content) {
            (1, Field::Fixed64(bits)) => value = f64::from_bits(bits),
            (2, Field::Varint(time)) => at = time,
            _ => {}
        }
    }
    (value, at)
}
