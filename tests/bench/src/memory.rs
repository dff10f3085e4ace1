//! The observer's resident memory with 100 sidecars and 10,000 series.
//!
//! "Series" has two meanings: lines of `/metrics`, as Prometheus counts them, and label sets, each of which is some
//! seventy such lines. Both are measured.

use std::{collections::BTreeMap, fmt, fs, process::Command, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use harness::{
    apps::http,
    bpffs::Bpffs,
    mesh::Mesh,
    net::finish,
    observer::Observer,
    stand_in::{Stand, StandIn},
};

use crate::{
    report::{Row, Target},
    spread::Spread,
    testbed::start_observer,
};

const SIDECARS: u8 = 100;
const SERIES: usize = 10_000;
const PORT: u16 = 8080;
/// Collection interval.
const INTERVAL: &str = "1s";
/// Time after a change until everything has been collected.
const REST: Duration = Duration::from_secs(3);

/// Returns both readings, and again where counts outlive the process.
pub(crate) fn resident() -> Result<Vec<Row>> {
    let (mut rows, pinned) = (measure(false)?, measure(true)?);
    rows.extend(pinned);
    Ok(rows)
}

fn measure(pinned: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::new()?;
    let bpffs = pinned.then(|| Bpffs::mount(mesh.directory())).transpose()?;
    let pod = mesh.workload("pod")?;
    let _application = http::serve(&pod, PORT)?;
    let stand = Stand::new(&mesh)?;
    let mut sidecars: Vec<StandIn> = (0..SIDECARS)
        .map(|number| stand.start(&format!("stand-in-{number}"), &number.to_string(), &pod))
        .collect::<Result<_>>()?;
    let pins = bpffs.as_ref().map(|bpffs| bpffs.path().join("pins").display().to_string());
    let mut arguments = vec!["--sidecar-exe", stand.name(), "--interval", INTERVAL];
    arguments.extend(pins.iter().flat_map(|pins| ["--pin", pins]));
    let observer = start_observer(&mesh, "", SIDECARS.into(), &arguments)?;
    sleep(REST);
    let before = Memory::of(&observer)?;

    sidecars.iter_mut().try_for_each(|sidecar| sidecar.statuses(PORT, 1))?;
    let a_set = Page::read(&observer)?.istio / usize::from(SIDECARS);
    ensure!(a_set > 0, "the observer exposes nothing of the stand-ins");
    let more = SERIES.div_ceil(a_set).saturating_sub(usize::from(SIDECARS));
    sidecars.iter_mut().take(more).try_for_each(|sidecar| sidecar.statuses(PORT, 2))?;
    let lines = Page::read(&observer)?;
    let with_lines = Memory::of(&observer)?;

    let statuses = u16::try_from(SERIES / usize::from(SIDECARS))?;
    sidecars.iter_mut().try_for_each(|sidecar| sidecar.statuses(PORT, statuses))?;
    sleep(REST);
    let unread = Memory::of(&observer)?;
    let sets = Page::read(&observer)?;
    let with_sets = Memory::of(&observer)?;
    ensure!(sets.in_use >= SERIES, "{} label sets are in use instead of {SERIES}", sets.in_use);
    drop(sidecars);
    observer.stop()?;

    let how = format!(
        "{SIDECARS} stand-ins for sidecars (processes with the injector's environment, each in a cgroup of its own) ask one \
         application for different statuses; before any request: {before}"
    );
    let pin = if pinned { ", --pin" } else { "" };
    Ok(vec![
        row(&format!("resident memory, 100 sidecars, 10,000 lines{pin}"), &with_lines)
            .note(format!("{} lines of {} label sets exposed; after a scrape", lines.istio, lines.in_use))
            .note(how),
        row(&format!("resident memory, 100 sidecars, 10,000 label sets{pin}"), &with_sets)
            .note(format!("{} label sets, {} lines exposed; right after a scrape", sets.in_use, sets.istio))
            .note(format!("before that scrape: {unread}")),
    ])
}

fn row(title: &str, memory: &Memory) -> Row {
    let row = Row::new(title, Target::AtMost(20.0), "MB", Spread::of([memory.resident]));
    let details =
        [("anonymous_mb", memory.anonymous), ("peak_mb", memory.peak), ("kernel_maps_mb", memory.kernel_maps)];
    let details: BTreeMap<String, f64> = details.map(|(name, value)| (name.to_owned(), value)).into();
    Row { details, ..row }.note(memory.to_string())
}

/// In megabytes.
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// Proportional share of shared pages.
    pub(crate) proportional: f64,
    /// Anonymous memory; the rest are file pages, which the kernel can drop and share.
    anonymous: f64,
    /// Peak resident memory.
    pub(crate) peak: f64,
    /// Kernel memory of the maps, which is not part of the resident memory.
    kernel_maps: f64,
}

impl Memory {
    pub(crate) fn of(observer: &Observer) -> Result<Self> {
        let process = format!("/proc/{}", observer.pid());
        let status = fs::read_to_string(format!("{process}/status")).context("the observer's status")?;
        let rollup = fs::read_to_string(format!("{process}/smaps_rollup")).context("the observer's smaps_rollup")?;
        let kilobytes = |key: &str| field(&status, key).with_context(|| format!("no {key} in the observer's status"));
        Ok(Self {
            resident: kilobytes("VmRSS:")? * 1024.0 / 1e6,
            proportional: field(&rollup, "Pss:").context("no Pss in the observer's smaps_rollup")? * 1024.0 / 1e6,
            anonymous: kilobytes("RssAnon:")? * 1024.0 / 1e6,
            peak: kilobytes("VmHWM:")? * 1024.0 / 1e6,
            kernel_maps: kernel_maps(observer.pid())? / 1e6,
        })
    }
}

/// Returns the bytes of a process's maps by the kernel's account, without socket storage.
pub(crate) fn kernel_maps(pid: u32) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the observer's descriptors")?.flatten() {
        // A descriptor may be closed while they are listed; only maps have `map_id`.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains("map_id:") {
            bytes += field(&text, "memlock:").unwrap_or(0.0);
        }
    }
    Ok(bytes)
}

fn field(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, proportional: _, anonymous, peak, kernel_maps } = self;
        write!(
            f,
            "resident {resident:.1} MB, of which {anonymous:.1} MB anonymous, peak {peak:.1} MB; maps in the kernel {kernel_maps:.1} MB"
        )
    }
}

/// Counts of a scrape, taken while it streams: it may be hundreds of megabytes.
struct Page {
    /// Lines of Istio's families.
    istio: usize,
    /// Label sets in the kernel's map.
    in_use: usize,
}

impl Page {
    fn read(observer: &Observer) -> Result<Self> {
        // The last counts may not be exposed yet.
        sleep(REST);
        let url = format!("http://{}/metrics", observer.address());
        let count =
            "/^istio_/ { lines++ } /^mesh_observer_series_in_use / { used = $2 } END { print lines + 0, used + 0 }";
        let script = format!("curl -sSf -m 300 {url} | awk '{count}'");
        let counted = finish(Command::new("sh").args(["-c", &script]), "")?;
        let mut numbers = counted.split_whitespace().filter_map(|number| number.parse().ok());
        let (istio, in_use) = numbers.next().zip(numbers.next()).with_context(|| format!("awk said {counted:?}"))?;
        Ok(Self { istio, in_use })
    }
}
