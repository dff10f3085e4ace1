//! `observer top` in a real terminal, over a mesh with traffic: it shows exactly what `/metrics` has, follows its keys, and
//! leaves the terminal as it was. `UPDATE_PICTURES=1` takes the pictures in `docs/` anew.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bookstore::Bookstore;
use harness::{
    edges::exposed_edges,
    observer::Observer,
    replay::{Capture, Replay},
    terminal::{Terminal, picture::svg},
    tools,
    wait::wait_until,
};

/// Limits the time until the table shows what is exposed.
const SHOW_TIMEOUT: Duration = Duration::from_secs(30);
/// How long traffic has run when pictures are taken.
const BEFORE_PICTURES: Duration = Duration::from_secs(100);
const LARGE: (u16, u16) = (120, 30);
const SMALL: (u16, u16) = (80, 24);
const PICTURE: (u16, u16) = (112, 24);
/// Protocols, and how they are shown.
const KINDS: [(&str, &str); 3] = [("http", "HTTP"), ("grpc", "gRPC"), ("tcp", "TCP")];

/// Totals by caller, callee and kind of traffic.
type Totals = BTreeMap<[String; 3], u64>;

#[test]
fn shows_exactly_what_is_exposed_and_follows_its_keys() -> Result<()> {
    let store = Bookstore::open()?;
    let istiod = Replay::start(&Capture::named("1.25.3/16-one-left")?)?;
    let url = istiod.url();
    let arguments =
        ["--scrape-interval", "1s", "--control-plane-exe", "no-such-control-plane", "--control-plane", &url];
    let observer = Observer::start(&store.mesh, 3, &arguments)?;
    let talk = store.talk()?;
    observer.wait(SHOW_TIMEOUT, |exposition| exposed_edges(exposition).is_ok_and(|edges| edges.len() >= 5))?;
    let terminal = Terminal::open(LARGE)?;
    terminal.run("before=$(stty -g); echo a line of the shell")?;
    terminal.run(&format!("{} top --url {}", tools::observer()?.display(), observer.address()))?;
    let screen =
        terminal.wait("the table with rates", |screen| screen.contains("RATE/s▼") && screen.contains(" ms "))?;
    ensure!(terminal.has_other_screen()? && !screen.contains("a line of the shell"), "{screen}");
    ensure!(screen.contains(&format!("http://{} ", observer.address())) && screen.contains(" live "), "{screen}");
    ensure!(screen.contains("3 sidecars") && screen.contains("control plane: 1 up"), "{screen}");
    if env::var_os("UPDATE_PICTURES").is_some() {
        take_pictures(&terminal)?;
    }

    pauses(&terminal)?;
    talk.end();
    wait_until("the table shows what is exposed", SHOW_TIMEOUT, || {
        let (exposed, shown) = (exposed_totals(&observer)?, shown_totals(&terminal.screen()?)?);
        ensure!(exposed == shown, "exposed: {exposed:#?}\nshown: {shown:#?}");
        Ok(())
    })?;
    sorts(&terminal)?;
    filters_and_shows_details(&terminal, &observer)?;

    observer.stop()?;
    let lost = terminal.wait("that the observer is gone", |screen| screen.contains("not reachable since "))?;
    ensure!(lost.contains("no observer answers at http://") && lost.contains("catalog"), "{lost}");
    terminal.press("q")?;
    is_as_it_was(&terminal)
}

#[test]
fn prints_once_and_says_why_it_cannot() -> Result<()> {
    let store = Bookstore::open()?;
    let observer = Observer::start(&store.mesh, 3, &[])?;
    let url = observer.address().to_string();
    let talk = store.talk()?;
    observer.wait(SHOW_TIMEOUT, |exposition| exposed_edges(exposition).is_ok_and(|edges| edges.len() >= 5))?;
    let busy = printed(&top(&["--once", "--url", &url])?)?;
    ensure!(busy.lines().any(|line| line.contains("gRPC") && line.contains(" ms ")), "no percentile: {busy}");
    talk.end();
    wait_until("it prints what is exposed", SHOW_TIMEOUT, || {
        let (exposed, shown) =
            (exposed_totals(&observer)?, shown_totals(&printed(&top(&["--once", "--url", &url])?)?)?);
        ensure!(exposed == shown, "exposed: {exposed:#?}\nshown: {shown:#?}");
        Ok(())
    })?;
    let filtered = printed(&top(&["--once", "--url", &url, "--filter", "GRPC", "--sort", "total"])?)?;
    ensure!(shown_totals(&filtered)?.into_keys().all(|[.., kind]| kind == "gRPC"), "{filtered}");

    refused(&["--url", &url], 2, "`observer top --once` prints the table")?;
    refused(&["--once", "--url", "ftp://a:secret@b"], 2, "neither http nor https")?;
    let istiod = Replay::start(&Capture::named("1.25.3/16-one-left")?)?;
    refused(&["--once", "--url", &istiod.url()], 1, "does not answer with an observer's document")?;
    observer.stop()?;
    refused(
        &["--once", "--url", &format!("http://me:secret@{url}")],
        1,
        &format!("no observer answers at http://{url} ("),
    )
}

#[test]
fn observes_by_itself_where_no_observer_runs() -> Result<()> {
    let default = (Ipv4Addr::LOCALHOST, 9469);
    ensure!(TcpStream::connect(default).is_err(), "an observer answers at {default:?}: stop it");
    let store = Bookstore::open()?;
    let configuration = store.mesh.directory().join("top.toml");
    // What `run` would do with it must not happen: nothing is pinned, pushed or served elsewhere.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let listen = format!("listen = \"{}\"\n", taken.local_addr()?);
    fs::write(&configuration, format!("{listen}pin = \"/sys/fs/bpf/mesh-top\"\n{}", store.mesh.observer_tables()))?;
    let own = ["--sidecar-exe", &store.mesh.executable(), "--config", &configuration.display().to_string()]
        .map(str::to_owned);
    let talk = store.talk()?;
    let once = top(&[["--once", "--interval", "5s"].as_slice(), &own.each_ref().map(String::as_str)].concat())?;
    let said = String::from_utf8_lossy(&once.stderr).into_owned();
    ensure!(
        said.contains("no observer answers at http://127.0.0.1:9469") && said.contains("observing by itself"),
        "{said}"
    );
    let rows = shown_totals(&printed(&once)?)?;
    // Connections from before it are known by their bytes alone.
    let is_counted = |from: &str, to: &str, kind: &str| rows.get(&[from, to, kind].map(str::to_owned)) > Some(&0);
    ensure!(is_counted("shop", "catalog", "HTTP") && is_counted("stock", "catalog", "HTTP"), "{rows:?}");
    ensure!(is_counted("shop", "stock", "TCP"), "{rows:?}");
    ensure!(!Path::new("/sys/fs/bpf/mesh-top").exists(), "it has pinned something");
    ensure!(own_observers(&store)?.is_empty(), "its observer goes on");

    let unprivileged = Command::new(tools::require("setpriv")?)
        .args(["--reuid", "65534", "--clear-groups", "--", "/proc/self/fd/0", "top", "--once"])
        .stdin(fs::File::open(tools::observer()?)?)
        .output()?;
    let said = String::from_utf8_lossy(&unprivileged.stderr).into_owned();
    ensure!(unprivileged.status.code() == Some(1) && said.contains("or be root"), "{}: {said}", unprivileged.status);

    // Whatever ends it, its observer ends with it.
    for signal in ["TERM", "KILL"] {
        let terminal = Terminal::open(SMALL)?;
        terminal.run("before=$(stty -g)")?;
        terminal.run(&format!("{} top {}", tools::observer()?.display(), own.join(" ")))?;
        terminal.wait("calls", |screen| screen.contains("observing by itself") && screen.contains("catalog"))?;
        let observers = own_observers(&store)?;
        let [(observer, parent)] = observers[..] else { bail!("{observers:?}") };
        kill(parent, signal)?;
        wait_until("its observer ends", SHOW_TIMEOUT, || {
            ensure!(!Path::new(&format!("/proc/{observer}")).exists(), "{observer} runs");
            Ok(())
        })?;
        if signal == "TERM" {
            is_as_it_was(&terminal)?;
        }
    }
    talk.end();
    Ok(())
}

/// Returns the ids of observers that a table has started over this mesh, with their parents'.
fn own_observers(store: &Bookstore) -> Result<Vec<(u32, u32)>> {
    let executable = store.mesh.executable();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let Some(id) = process?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        if line.contains("--observe-only") && line.contains(&executable) {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
            found.push((id, parent.trim().parse()?));
        }
    }
    Ok(found)
}

fn kill(process: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill").args(["-s", signal, &process.to_string()]).status()?;
    ensure!(status.success(), "kill -s {signal} {process}: {status}");
    Ok(())
}

fn pauses(terminal: &Terminal) -> Result<()> {
    terminal.press("p")?;
    let paused = terminal.wait("the pause", |screen| screen.contains("PAUSED "))?;
    sleep(Duration::from_millis(2_500));
    ensure!(terminal.screen()? == paused, "it goes on while paused");
    terminal.press("Space")?;
    terminal.wait("the table goes on", |screen| screen.contains(" live ")).map(drop)
}

fn sorts(terminal: &Terminal) -> Result<()> {
    let totals = |screen: &str| -> Result<Vec<u64>> {
        let rows = rows(screen)?;
        rows.into_iter()
            .map(|row| row.last().context("an empty row")?.replace(',', "").parse().context("a total"))
            .collect()
    };
    // From the rate to the total.
    for _ in 0..7 {
        if terminal.screen()?.contains("TOTAL▼") {
            break;
        }
        terminal.press("s")?;
        sleep(Duration::from_millis(200));
    }
    let screen = terminal.wait("the order by total", |screen| screen.contains("TOTAL▼"))?;
    ensure!(totals(&screen)?.is_sorted_by(|one, other| one >= other), "{screen}");
    terminal.press("S")?;
    let screen = terminal.wait("the other direction", |screen| screen.contains("TOTAL▲"))?;
    ensure!(totals(&screen)?.is_sorted(), "{screen}");
    Ok(())
}

/// Finds the only TCP service; its details are those of `/metrics`, in a small terminal too.
fn filters_and_shows_details(terminal: &Terminal, observer: &Observer) -> Result<()> {
    terminal.write("/TCP")?;
    terminal.press("Enter")?;
    terminal.wait("the filter", |screen| {
        screen.contains("filter: TCP") && rows(screen).is_ok_and(|rows| rows.len() == 1)
    })?;
    terminal.press("Enter")?;
    let exposition = observer.scrape()?;
    let sum = |name: &str, reporter: &str| {
        exposition.sum(name, &[("reporter", reporter)]).with_context(|| format!("no {name} of {reporter}"))
    };
    let [source, destination] =
        ["source", "destination"].map(|reporter| sum("istio_tcp_connections_opened_total", reporter));
    let expected = ["connections".to_owned(), source?.to_string(), destination?.to_string()];
    for size in [SMALL, LARGE] {
        terminal.resize(size)?;
        let screen = terminal.wait("the details", |screen| {
            let figures = |line: &str| line.replace(',', "").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            screen.contains("counted by") && screen.lines().any(|line| figures(line) == expected)
        })?;
        ensure!(screen.contains("█"), "no course: {screen}");
        let [width, height] = [screen.lines().map(|line| line.chars().count()).max(), Some(screen.lines().count())];
        ensure!(width <= Some(size.0.into()) && height <= Some(size.1.into()), "{width:?} by {height:?}");
    }
    terminal.press("Escape")?;
    terminal.wait("the table", |screen| screen.contains("FROM"))?;
    terminal.press("Tab")?;
    terminal.wait("the node", |screen| {
        screen.contains("NOT SEEN, AND WHY") && screen.contains("citadel_server_csr_count: 8")
    })?;
    // A terminal tells Escape from a key with Alt by the time until the next one.
    terminal.press("Escape")?;
    terminal.wait("the table again", |screen| screen.contains("FROM"))?;
    terminal.press("?")?;
    terminal.wait("the help", |screen| screen.contains("reverse the order"))?;
    terminal.press("Escape")?;
    terminal.wait("no help", |screen| screen.contains("FROM"))?;
    terminal.press("Escape")?;
    terminal.wait("no filter", |screen| rows(screen).is_ok_and(|rows| rows.len() > 1)).map(drop)
}

/// The shell's lines are back, and the terminal has its modes.
fn is_as_it_was(terminal: &Terminal) -> Result<()> {
    terminal.wait("the shell", |screen| screen.trim_end().ends_with("mesh$"))?;
    ensure!(!terminal.has_other_screen()?, "the screen of the table is still there");
    terminal.run("[ \"$(stty -g)\" = \"$before\" ] && echo 'the same' modes")?;
    terminal.wait("the terminal's modes", |screen| screen.contains("the same modes"))?;
    Ok(())
}

fn take_pictures(terminal: &Terminal) -> Result<()> {
    terminal.resize(PICTURE)?;
    sleep(BEFORE_PICTURES);
    let docs = tools::repository().join("docs");
    for (name, key, shown) in [("top", "Home", "FROM"), ("top-call", "Enter", "counted by")] {
        terminal.press(key)?;
        terminal.wait(name, |screen| screen.contains(shown))?;
        sleep(Duration::from_secs(3));
        fs::write(docs.join(format!("{name}.svg")), svg(&terminal.styled_screen()?, PICTURE.0.into()))?;
    }
    terminal.press("Escape")?;
    terminal.resize(LARGE)?;
    terminal.wait("the table", |screen| screen.contains("FROM")).map(drop)
}

fn top(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(tools::observer()?);
    command.arg("top").args(arguments).stdin(Stdio::null()).output().context("observer top")
}

fn printed(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone())?;
    ensure!(!text.contains('\x1b'), "escape sequences without a terminal: {text}");
    Ok(text)
}

fn refused(arguments: &[&str], code: i32, reason: &str) -> Result<()> {
    let output = top(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code) && said.contains(reason), "{arguments:?}: {}: {said}", output.status);
    ensure!(!said.contains("secret"), "{said}");
    Ok(())
}

/// Returns the cells of the table's rows.
fn rows(screen: &str) -> Result<Vec<Vec<String>>> {
    let mut lines = screen.lines().skip_while(|line| !line.trim_start().starts_with("FROM"));
    lines.next().with_context(|| format!("no table: {screen}"))?;
    let rows = lines.take_while(|line| !line.trim().is_empty());
    Ok(rows.map(|row| row.trim_start_matches([' ', '!']).split_whitespace().map(str::to_owned).collect()).collect())
}

/// Returns the totals that are on a screen, or printed.
fn shown_totals(screen: &str) -> Result<Totals> {
    let total = |row: Vec<String>| {
        let [from, to, kind, .., total] = &row[..] else { bail!("{row:?}") };
        Ok(([from, to, kind].map(Clone::clone), total.replace(',', "").parse().with_context(|| format!("{row:?}"))?))
    };
    rows(screen)?.into_iter().map(total).collect()
}

/// Returns the totals that are exposed.
fn exposed_totals(observer: &Observer) -> Result<Totals> {
    let total = |(key, total): (String, f64)| {
        let ends: Vec<&str> = key.split('|').collect();
        let [from, to, protocol] = ends[..] else { bail!("{key}") };
        let name = |id: &str| id.splitn(3, '/').last().unwrap_or(id).to_owned();
        let kind = KINDS.into_iter().find(|(name, _)| *name == protocol).map_or("?", |(_, kind)| kind);
        Ok(([name(from), name(to), kind.to_owned()], total as u64))
    };
    exposed_edges(&observer.scrape()?)?.into_iter().map(total).collect()
}
