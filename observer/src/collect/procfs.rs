//! What the kernel accounts for each process of the mesh: `/proc/PID` below a root of choice, and its cgroup v2 directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use procfs::{
    ProcError,
    process::{LimitValue, Process, Stat},
};

use super::{CgroupReading, ProcessReading};
use crate::discovery::ProcessId;

/// A process to read, and its cgroup v2 directory where that is known.
pub type Wanted<'a> = (ProcessId, Option<&'a Path>);

/// Reads them all. Those that have ended, or whose number is another's now, are left out; the error is the first of those
/// that are there and cannot be read.
pub fn read<'a>(
    proc_root: &Path,
    wanted: impl IntoIterator<Item = Wanted<'a>>,
) -> (Vec<ProcessReading>, Option<String>) {
    let mut wanted = wanted.into_iter().filter(|(process, _)| process.is_process()).peekable();
    if wanted.peek().is_none() {
        return (Vec::new(), None);
    }
    let path = proc_root.join("stat");
    let (booted, mut error) = match fs::read(&path).and_then(|lines| boot_time(&lines)) {
        Ok(booted) => (Some(booted), None),
        Err(error) => (None, Some(format!("{}: {error}", path.display()))),
    };
    let mut readings = Vec::new();
    for (process, cgroup) in wanted {
        match read_process(proc_root.join(process.pid.to_string()), process, booted, cgroup) {
            Ok(reading) => readings.push(reading),
            Err(ProcError::NotFound(_)) => {}
            Err(other) => error = error.or_else(|| Some(format!("process {}: {other}", process.pid))),
        }
    }
    (readings, error)
}

/// When the machine was started: the line `btime` of `/proc/stat`, whole seconds since 1970 [proc_stat(5)].
fn boot_time(lines: &[u8]) -> io::Result<SystemTime> {
    let seconds = lines
        .split(|&byte| byte == b'\n')
        .find_map(|line| std::str::from_utf8(line.strip_prefix(b"btime ")?).ok()?.trim().parse().ok());
    let booted = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    booted.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no line btime"))
}

/// The directory is held open meanwhile, so that all that is read is of one process.
fn read_process(
    directory: PathBuf,
    process: ProcessId,
    booted: Option<SystemTime>,
    cgroup: Option<&Path>,
) -> Result<ProcessReading, ProcError> {
    let files = Process::new_with_root(directory)?;
    let stat = files.stat()?;
    if stat.starttime != process.start_time || is_ended(&stat) {
        return Err(ProcError::NotFound(None));
    }
    Ok(ProcessReading {
        process,
        cpu: ticks(stat.utime.saturating_add(stat.stime)),
        resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
        virtual_bytes: stat.vsize,
        threads: u64::try_from(stat.num_threads).unwrap_or_default(),
        started: booted.and_then(|booted| booted.checked_add(ticks(stat.starttime))),
        // These two may be hidden where the rest is not.
        open_files: files.fd_count().ok().map(|count| count as u64),
        max_open_files: files.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        }),
        cgroup: cgroup.map(read_cgroup).unwrap_or_default(),
    })
}

/// A process that nobody has waited for yet has a line still, and nothing else.
fn is_ended(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

fn ticks(number: u64) -> Duration {
    let a_second = procfs::ticks_per_second();
    let rest = u128::from(number % a_second) * 1_000_000_000 / u128::from(a_second);
    Duration::from_secs(number / a_second) + Duration::from_nanos(u64::try_from(rest).unwrap_or_default())
}

/// What the controllers say that the cgroup has; a limit of `max` is none.
fn read_cgroup(directory: &Path) -> CgroupReading {
    let text = |file| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let number = |file| text(file).trim().parse().ok();
    let stat = text("cpu.stat");
    CgroupReading {
        memory_bytes: number("memory.current"),
        max_memory_bytes: number("memory.max"),
        periods: figure(&stat, "nr_periods"),
        throttled_periods: figure(&stat, "nr_throttled"),
        throttled: figure(&stat, "throttled_usec").map(Duration::from_micros),
    }
}

/// The value of `key` in lines of a key and a value.
fn figure(lines: &str, key: &str) -> Option<u64> {
    lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        process::{Child, Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max cpu time              unlimited            unlimited            seconds   \n\
        Max file size             unlimited            unlimited            bytes     \n\
        Max data size             unlimited            unlimited            bytes     \n\
        Max stack size            8388608              unlimited            bytes     \n\
        Max core file size        0                    unlimited            bytes     \n\
        Max resident set          unlimited            unlimited            bytes     \n\
        Max processes             1000                 1000                 processes \n\
        Max open files            1024                 4096                 files     \n\
        Max locked memory         8388608              8388608              bytes     \n\
        Max address space         unlimited            unlimited            bytes     \n\
        Max file locks            unlimited            unlimited            locks     \n\
        Max pending signals       1000                 1000                 signals   \n\
        Max msgqueue size         819200               819200               bytes     \n\
        Max nice priority         0                    0                    \n\
        Max realtime priority     0                    0                    \n\
        Max realtime timeout      unlimited            unlimited            us        \n";

    /// A proc file system of plain files with one process, number 7, that started 500 ticks after the machine.
    fn host(state: char) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        let directory = host.path().join("7");
        fs::create_dir_all(directory.join("fd")).unwrap();
        fs::write(host.path().join("stat"), "cpu  1 2\nintr 5\nctxt 9\nbtime 1700000000\nprocesses 3\n").unwrap();
        let (before, after) = ("0 ".repeat(10), "0 ".repeat(28));
        let stat = format!("7 (a b) c) {state} {before}250 50 0 0 20 0 9 0 500 4096000 123 {after}\n");
        fs::write(directory.join("stat"), stat).unwrap();
        fs::write(directory.join("limits"), LIMITS).unwrap();
        host
    }

    fn wanted(start_time: u64) -> [Wanted<'static>; 1] {
        [(ProcessId { pid: 7, start_time }, None)]
    }

    #[test]
    fn figures_are_in_their_units() {
        let host = host('S');
        let cgroup = host.path().join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("memory.current"), "4096\n").unwrap();
        fs::write(cgroup.join("memory.max"), "max\n").unwrap();
        fs::write(cgroup.join("cpu.stat"), "usage_usec 7\nnr_periods 9\nnr_throttled 3\nthrottled_usec 1500\n")
            .unwrap();
        let (readings, error) = read(host.path(), [(ProcessId { pid: 7, start_time: 500 }, Some(&*cgroup))]);
        assert_eq!(error, None);
        let seconds = |ticks: u64| Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
        let [reading] = &readings[..] else { panic!("{readings:?}") };
        assert_eq!(reading.cpu, seconds(300));
        assert_eq!(reading.resident_bytes, 123 * procfs::page_size());
        assert_eq!((reading.virtual_bytes, reading.threads, reading.max_open_files), (4_096_000, 9, Some(1024)));
        let booted = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(reading.started, Some(booted + seconds(500)));
        let expected = CgroupReading {
            memory_bytes: Some(4096),
            max_memory_bytes: None,
            periods: Some(9),
            throttled_periods: Some(3),
            throttled: Some(Duration::from_micros(1500)),
        };
        assert_eq!(reading.cgroup, expected);
    }

    #[test]
    fn another_or_an_ended_process_is_no_reading_and_no_error() {
        assert_eq!(read(host('S').path(), wanted(501)), (Vec::new(), None), "its number is another's");
        assert_eq!(read(host('Z').path(), wanted(500)), (Vec::new(), None), "it has ended");
        let gone = host('S');
        fs::remove_dir_all(gone.path().join("7")).unwrap();
        assert_eq!(read(gone.path(), wanted(500)), (Vec::new(), None));
    }

    #[test]
    fn what_is_hidden_is_absent_and_what_is_wrong_is_said() {
        let host = host('S');
        fs::remove_file(host.path().join("7/limits")).unwrap();
        fs::remove_dir(host.path().join("7/fd")).unwrap();
        fs::remove_file(host.path().join("stat")).unwrap();
        let (readings, error) = read(host.path(), wanted(500));
        let reading = &readings[0];
        assert_eq!((reading.open_files, reading.max_open_files, reading.started), (None, None, None));
        assert!(error.unwrap().contains("stat: "));
        fs::write(host.path().join("stat"), "btime 1\n").unwrap();
        fs::write(host.path().join("7/stat"), "7 (a) S nonsense\n").unwrap();
        let (readings, error) = read(host.path(), wanted(500));
        assert!(readings.is_empty() && error.as_ref().unwrap().starts_with("process 7: "), "{error:?}");
        assert_eq!(read(host.path(), [(ProcessId::of_cgroup(9), None)]), (Vec::new(), None), "no process at all");
    }

    /// A process that works until it is killed.
    struct Busy(Child);

    impl Busy {
        fn start() -> Self {
            let mut command = Command::new("/bin/sh");
            let busy = Self(command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap());
            // By then it has loaded all that it will ever load.
            while busy.direct()[0] < 2 {
                std::thread::sleep(Duration::from_millis(5));
            }
            busy
        }

        fn id(&self) -> ProcessId {
            let pid = self.0.id();
            let stat = Process::new(pid.cast_signed()).unwrap().stat().unwrap();
            ProcessId { pid, start_time: stat.starttime }
        }

        /// User and system time, address space, and the size of the descriptor table as /proc has them now.
        fn direct(&self) -> [u64; 3] {
            let directory = Path::new("/proc").join(self.0.id().to_string());
            let line = fs::read_to_string(directory.join("stat")).unwrap();
            let fields: Vec<&str> = line.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
            let field = |number: usize| fields[number - 3].parse::<u64>().unwrap();
            let descriptors = fs::read_dir(directory.join("fd")).unwrap().count() as u64;
            [field(14) + field(15), field(23), descriptors]
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            // An error means that it has ended already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn figures_of_real_processes_lie_between_two_direct_reads() {
        let busy = Busy::start();
        let process = busy.id();
        for _ in 0..50 {
            let before = busy.direct();
            let (readings, error) = read(Path::new("/proc"), [(process, None)]);
            let after = busy.direct();
            assert_eq!(error, None);
            let reading = &readings[0];
            let cpu = (reading.cpu.as_secs_f64() * procfs::ticks_per_second() as f64).round() as u64;
            let ours = [cpu, reading.virtual_bytes, reading.open_files.unwrap()];
            for ((ours, before), after) in ours.into_iter().zip(before).zip(after) {
                assert!((before.min(after)..=before.max(after)).contains(&ours), "{before} {ours} {after}");
            }
            assert_eq!(reading.threads, 1);
            assert!((100_000..reading.virtual_bytes).contains(&reading.resident_bytes));
        }
        let started = read(Path::new("/proc"), [(process, None)]).0[0].started.unwrap();
        assert!(started.elapsed().unwrap_or_default() < Duration::from_secs(60), "{started:?}");
        drop(busy);
        assert_eq!(read(Path::new("/proc"), [(process, None)]), (Vec::new(), None));
    }

    #[test]
    fn open_files_are_counted_one_by_one() {
        let own = std::process::id();
        let start_time = Process::myself().unwrap().stat().unwrap().starttime;
        let process = ProcessId { pid: own, start_time };
        let count = || read(Path::new("/proc"), [(process, None)]).0[0].open_files.unwrap();
        let before = count();
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let during = count();
        drop(files);
        // Other tests of this process open and close some meanwhile.
        assert!((before + 250..before + 350).contains(&during), "{before} {during}");
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(btime|nr_periods|[0-9]| |\n){0,40}", number: u64) {
            let _ = (boot_time(&bytes), boot_time(text.as_bytes()), figure(&text, "nr_periods"), ticks(number));
        }
    }
}
