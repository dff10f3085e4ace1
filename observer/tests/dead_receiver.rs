//! What a receiver costs that is dead for an hour: no more snapshots than may wait in memory, no more of the disk than the
//! configuration says, and no memory beside. The clock jumps from one timer to the next; nothing else runs in this process.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use observer::{
    app::emitters::Emitters,
    cli::args::RunArgs,
    config::Config,
    emit::DeliveryLimits,
    model::{Inputs, Model, Snapshot, fixture, reading::Reading},
};

const INTERVAL: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 120;
/// Rounds until everything that is bounded has been full.
const FILLED: u64 = 20;
const QUEUE_BYTES: u64 = 1 << 20;
/// Samples of the page that each snapshot holds anew, some 150 KB.
const SAMPLES: usize = 2_000;
/// Of the process: far less than a hundred such snapshots, and more than the allocator and the runtime's threads vary.
const MAX_GROWTH: usize = 4 << 20;

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_dead_for_an_hour_costs_what_the_options_say() {
    for kind in ["otlp", "remote-write", "wavefront"] {
        for has_disk in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let mut text = format!("emit = [\"{kind}+http://{}\"]\n", dead());
            if has_disk {
                text += &format!("queue_dir = \"{}\"\nqueue_bytes = {QUEUE_BYTES}\n", directory.path().display());
            }
            let config = Config::from_text(&RunArgs::default(), Path::new("o.toml"), &text).unwrap();
            let emitter = Emitters::prepare(&config).unwrap().start().remove(0);
            let mut offered: Vec<Weak<Snapshot>> = Vec::new();
            let (mut most, mut filled) = (0, 0);
            for round in 1..=ROUNDS {
                let snapshot = snapshot(round);
                offered.push(Arc::downgrade(&snapshot));
                emitter.offer(snapshot);
                tokio::time::sleep(INTERVAL).await;
                most = most.max(offered.iter().filter(|snapshot| snapshot.strong_count() > 0).count());
                if round == FILLED {
                    filled = resident();
                }
                assert!(on_disk(directory.path()) <= QUEUE_BYTES, "{text}");
            }
            let (stats, now) = (emitter.stats(), resident());
            println!("{text}{most} snapshots; {filled} bytes after 10 min, {now} after an hour");
            // Those that wait, the one that is sent, and the one before it, whose series remote write has yet to end.
            assert!(most <= DeliveryLimits::default().queue + 2, "{text}{most} snapshots");
            assert!(has_disk || most > 0, "{text}nothing waits");
            assert!(now < filled + MAX_GROWTH, "{text}{filled} bytes after 10 min, {now} after an hour");
            assert!(stats.sent == 0 && stats.errors.iter().any(|(kind, count)| *kind == "connect" && *count > 50));
            let full = if has_disk { &stats.dropped } else { &stats.pushes_dropped };
            assert!(full.iter().any(|(reason, count)| *reason == "queue_full" && *count > 0), "{text}{stats:?}");
        }
    }
}

/// Returns a place where nobody listens.
fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Returns a snapshot that shares nothing with others.
fn snapshot(round: u64) -> Arc<Snapshot> {
    let page: String = (0..SAMPLES).map(|number| format!("a{{n=\"{number:050}\"}} {round}{number}\n")).collect();
    let scrapes = vec![fixture::scraped("10.0.0.8:15014", &page)];
    let seconds = round * INTERVAL.as_secs();
    Model::new(fixture::at(0), Duration::from_mins(15)).update(Inputs {
        reading: &Reading { scrapes, ..fixture::reading(seconds, fixture::every_kind(round)) },
        running: &fixture::sidecars(),
        ended: &[],
        components: &[],
        peers: &fixture::peers(),
        own: &fixture::own(),
        closes_interval: true,
    })
}

/// Returns the bytes of the files in a directory and in those below.
fn on_disk(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap());
    let size = |file: fs::DirEntry| {
        let metadata = file.metadata().unwrap();
        if metadata.is_dir() { on_disk(&file.path()) } else { metadata.len() }
    };
    files.map(size).sum()
}

/// Returns the bytes of this process that are in memory, of files aside.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    kilobytes.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}
