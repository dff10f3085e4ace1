//! Opens the kernel object: creates or reuses its maps, and loads its programs.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::Object;
use observer_common::{SENDS_TARGETS, names};
use rustix::param::page_size;

use super::{Traces, error::KernelError, sys};
use crate::persist::abi::Abi;

/// The kernel objects, without and with the reading of traces; empty in a build without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel.o"));
static TRACES_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel.traces.o"));

/// Maximum numbers of map entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) max_series: u32,
    pub(super) max_open_calls: u32,
    /// What of the trace contexts is read.
    pub(super) traces: Traces,
}

impl Sizes {
    /// Returns the object with maps of these sizes.
    fn object(self) -> Result<&'static [u8], KernelError> {
        let object = if self.traces == Traces::Off { OBJECT } else { TRACES_OBJECT };
        if object.is_empty() { Err(KernelError::NoObject) } else { Ok(object) }
    }

    fn by_map(self) -> [(&'static str, u32); 9] {
        let slots = self.max_series.saturating_add(1);
        let blocks = slots.saturating_mul(BLOCKS_PER_SERIES);
        let reads_traces = self.traces != Traces::Off;
        [
            (names::SLOTS, self.max_series),
            (names::H2_STREAMS, self.max_open_calls),
            (names::SERIES, slots),
            (names::FREE_SLOTS, slots),
            (names::BUCKET_PAGES, blocks),
            (names::FREE_PAGES, blocks),
            // A map cannot be empty.
            (names::TRACES, if reads_traces { MAX_TRACES } else { 1 }),
            (names::EXEMPLARS, if reads_traces { slots.saturating_mul(EXEMPLARS_PER_SERIES) } else { 1 }),
            (names::SPANS, if self.traces >= Traces::Spans { SPAN_BYTES } else { page_size() as u32 }),
        ]
    }
}

/// Octaves that a series' three histograms touch between them; measured: 4 to 9.
const BLOCKS_PER_SERIES: u32 = 12;

/// Sampled requests that are open at a time; beyond them the oldest are forgotten.
const MAX_TRACES: u32 = 16_384;
/// Buckets of a series that have exemplars at a time, on average; beyond them the oldest are forgotten.
const EXEMPLARS_PER_SERIES: u32 = 4;
/// Bytes of records that wait to be taken: some 4,500.
const SPAN_BYTES: u32 = 1 << 20;

/// Opens the object and creates its maps, or reuses those pinned in `pins`.
pub(super) fn open(sizes: Sizes, pins: Option<&Path>) -> Result<Ebpf, KernelError> {
    let object = sizes.object()?;
    let missing = missing_features();
    if !missing.is_empty() {
        return Err(KernelError::Unsupported { features: missing.join(" and ") });
    }
    let mut loader = EbpfLoader::new();
    // A rejected program is loaded once more for its log. A trace of every instruction is megabytes long and would take ten
    // more loads of seconds each.
    let traced = tracing::enabled!(tracing::Level::TRACE);
    loader.verifier_log_level(
        VerifierLogLevel::STATS | if traced { VerifierLogLevel::DEBUG } else { VerifierLogLevel::DISABLE },
    );
    // The kernel's own types are not needed: no program reads kernel memory.
    loader.btf(None);
    for (name, size) in sizes.by_map() {
        loader.map_max_entries(name, size);
    }
    for name in names::MAPS {
        if let Some(pins) = pins {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    let sends_spans = match sizes.traces {
        Traces::Off | Traces::Exemplars => 0,
        Traces::Spans => 1,
        Traces::Targets => SENDS_TARGETS,
    };
    // The object without traces has no such constant.
    loader.override_global(names::SENDS_SPANS, &sends_spans, sizes.traces != Traces::Off);
    loader.load(object).map_err(KernelError::open)
}

/// Returns the required features that a probe did not find. The probes load programs of a type that needs the same privileges
/// as every helper: without them the probe fails, and creating the maps reports why.
fn missing_features() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if let Ok(false) = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_loop) {
        missing.push("bpf_loop");
    }
    if !sys::takes_fetching_atomics() {
        missing.push("atomics that return a value");
    }
    missing
}

/// Returns the ABI hash of the maps that [`open`] creates.
pub(super) fn abi_hash(sizes: Sizes) -> Result<String, KernelError> {
    let object = Object::parse(sizes.object()?).map_err(|error| KernelError::open(error.into()))?;
    let abi = Abi::of(&object, &sizes.by_map()).ok_or(KernelError::Missing { name: ".BTF" })?;
    Ok(abi.hash())
}

/// Loads one program into the kernel.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing { name })?;
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => return Err(KernelError::Missing { name }),
    };
    result.map_err(|source| KernelError::load(name, source))
}

/// Fills the program arrays for tail calls. The kernel empties an array when its last owner drops it.
pub(super) fn link_tail_calls(ebpf: &mut Ebpf) -> Result<Vec<ProgramArray<MapData>>, KernelError> {
    names::TAIL_CALLED.iter().map(|(table, programs)| fill(ebpf, table, programs)).collect()
}

fn fill(
    ebpf: &mut Ebpf,
    name: &'static str,
    programs: &'static [&'static str],
) -> Result<ProgramArray<MapData>, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::Missing { name })?;
    let mut table = ProgramArray::try_from(map).map_err(|source| KernelError::map(name, source))?;
    for (number, &program) in programs.iter().enumerate() {
        let loaded = ebpf.program(program).ok_or(KernelError::Missing { name: program })?;
        let fd = loaded.fd().map_err(|source| KernelError::load(program, source))?;
        table.set(number as u32, fd, 0).map_err(|source| KernelError::map(name, source))?;
    }
    Ok(table)
}
