//! The pin directory: its owner, its checks, and its removal.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{pair::Expected, third_party_program::ThirdPartyProgram, tools};
use rustix::process::{Pid, Signal, kill_process};

use super::{Pinned, request_both};

const RUN: [&str; 3] = ["run", "--listen=127.0.0.1:0", "--pin"];
const DETACH: [&str; 2] = ["detach", "--pin"];
const CHECK: [&str; 2] = ["check", "--pin"];

pub(super) fn second_observer_is_refused(pinned: &mut Pinned) -> Result<String> {
    pinned.observe()?;
    let holder = format!("in use by process {}:", pinned.observer()?.pid());
    for arguments in [RUN.as_slice(), &DETACH] {
        let said = refused(arguments, pinned.directory())?;
        ensure!(said.contains(&holder), "{said} does not say {holder}");
    }
    let said = told(&CHECK, pinned.directory())?;
    let expected = format!("in use by process {} now; 12 programs", pinned.observer()?.pid());
    ensure!(said.contains(&expected), "{said} does not say {expected}");
    pinned.pair.check(Expected::both(2), request_both)
}

pub(super) fn detach_leaves_nothing(pinned: &mut Pinned) -> Result<String> {
    let witness = ThirdPartyProgram::attach(pinned.pair.sidecars[0].cgroup(), false)?;
    pinned.observe()?;
    pinned.take_observer()?.stop()?;
    ensure!(witness.programs()? == 2, "{} programs outlive the process", witness.programs()?);
    let said = told(&CHECK, pinned.directory())?;
    ensure!(said.contains("in use by no observer now; 12 programs"), "{said}");
    let first = told(&DETACH, pinned.directory())?;
    ensure!(first.contains("detached 12 programs"), "{first}");
    ensure!(witness.programs()? == 1, "{} programs are left", witness.programs()? - 1);
    ensure!(!Path::new(&pinned.directory()).exists(), "the directory is left");
    let again = told(&DETACH, pinned.directory())?;
    ensure!(again.contains("nothing is pinned"), "{again}");
    Ok(first.trim().to_owned())
}

/// As the Helm chart uninstalls: detaching begins while the observer still runs or stops.
pub(super) fn detach_waits_for_the_observer(pinned: &mut Pinned) -> Result<String> {
    pinned.observe()?;
    let directory = pinned.directory();
    let mut waiting = Command::new(tools::observer()?)
        .args(DETACH)
        .args([&*directory, "--wait", "1m", "--stay"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    sleep(Duration::from_secs(1));
    let ended = waiting.try_wait()?;
    ensure!(ended.is_none() && Path::new(&directory).exists(), "it does not wait: {ended:?}");
    pinned.take_observer()?.stop()?;
    let mut line = String::new();
    BufReader::new(waiting.stdout.take().context("a pipe")?).read_line(&mut line)?;
    ensure!(line.contains("detached 12 programs"), "{line}");
    ensure!(!Path::new(&directory).exists(), "the directory is left");
    let ended = waiting.try_wait()?;
    ensure!(ended.is_none(), "it does not stay: {ended:?}");
    kill_process(Pid::from_child(&waiting), Signal::TERM)?;
    ensure!(waiting.wait()?.success(), "it does not stop as asked");
    Ok(line.trim().to_owned())
}

pub(super) fn unusable_directories_are_refused(pinned: &mut Pinned) -> Result<String> {
    let (home, bpffs) = (pinned.pair.mesh.directory(), pinned.bpffs.path());
    for (directory, expected) in
        [(home.join("no-bpffs"), "is not on a bpffs"), (bpffs.join("one/two"), "one does not exist")]
    {
        let said = refused(&RUN, &directory)?;
        ensure!(said.contains(expected), "{said}");
        ensure!(!directory.exists(), "{} is left", directory.display());
    }
    let third_party = bpffs.join("third_party");
    fs::create_dir_all(third_party.join("theirs"))?;
    for arguments in [RUN.as_slice(), &DETACH] {
        let said = refused(arguments, &third_party)?;
        ensure!(said.contains("holds theirs"), "{said}");
    }
    ensure!(third_party.join("theirs").exists(), "what is another's is gone");
    fs::create_dir_all(bpffs.join("there"))?;
    pinned.bpffs.make_read_only()?;
    for name in ["there", "not-there"] {
        let said = refused(&RUN, bpffs.join(name))?;
        ensure!(said.contains("must be writable") && said.contains(name), "{said}");
    }
    ensure!(refused_by_check(&bpffs.join("there"))?.contains("must be writable"), "check does not say it");
    Ok("each with its reason".to_owned())
}

fn refused(arguments: &[&str], directory: impl AsRef<Path>) -> Result<String> {
    let (code, _, said) = ended(arguments, directory.as_ref())?;
    ensure!(code == Some(1), "{arguments:?} ended with {code:?}: {said}");
    Ok(said)
}

/// Output of `check` on a directory that keeps `run` from working.
fn refused_by_check(directory: &Path) -> Result<String> {
    let (code, report, _) = ended(&CHECK, directory)?;
    ensure!(
        code == Some(1) && report.contains("the pin directory cannot be used"),
        "check ended with {code:?}: {report}"
    );
    Ok(report)
}

fn told(arguments: &[&str], directory: impl AsRef<Path>) -> Result<String> {
    let (code, told, said) = ended(arguments, directory.as_ref())?;
    ensure!(code == Some(0), "{arguments:?} ended with {code:?}: {told}{said}");
    Ok(told)
}

/// Runs the observer; returns exit code, standard output and standard error.
fn ended(arguments: &[&str], directory: &Path) -> Result<(Option<i32>, String, String)> {
    let output = Command::new(tools::observer()?).args(arguments).arg(directory).stdin(Stdio::null()).output()?;
    let [told, said] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok((output.status.code(), told, said))
}
