//! What is on the screen, against golden screens (`UPDATE_GOLDEN=1` writes them), and whatever a server may send.

use std::{env, fs, path::PathBuf};

use observer_top::{App, Column, Demand, Document, Flow, History, Options, Order, Palette, page};
use proptest::prelude::*;
use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    style::Color,
};
use serde_json::{Value, json};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (130, 32);

fn side(requests: u64, errors: u64, p50: f64) -> Value {
    let counts = |of: f64| {
        json!({
            "requests": requests as f64 * of, "errors": errors as f64 * of, "client_errors": 0,
            "codes": { "0": 0, "200": (requests - errors) as f64 * of, "503": errors as f64 * of },
            "request_bytes": requests as f64 * 210.0 * of, "response_bytes": requests as f64 * 1_410.0 * of,
            "request_messages": 0, "response_messages": 0, "opened": 0, "closed": 0, "received_bytes": 0, "sent_bytes": 0,
        })
    };
    let mut recent = counts(1.0);
    recent["latency_ms"] = json!({ "mean": 2.0 * p50, "p50": p50, "p75": 1.5 * p50, "p90": 4.0 * p50, "p95": 8.0 * p50,
        "p99": 20.0 * p50, "p999": 30.0 * p50 });
    json!({ "totals": counts(251.0), "recent": recent })
}

fn edge(id: u32, from: &str, to: &str, protocol: &str, source: Value) -> Value {
    json!({
        "id": id, "from": from, "to": to, "protocol": protocol, "services": [format!("{}.default.svc.cluster.local", &to[17..])],
        "security": ["mutual_tls"], "source": source,
    })
}

/// A node with the demo's calls.
fn node() -> Value {
    let tcp = json!({ "opened": 540, "closed": 539, "received_bytes": 51_000, "sent_bytes": 2_040_000 });
    let recent = json!({ "opened": 2.2, "closed": 2.2, "received_bytes": 204.0, "sent_bytes": 8_196.0 });
    let mut prices = edge(3, "workload/default/shop", "workload/default/prices", "grpc", side(12, 2, 0.3));
    for (of, values) in [("totals", [2_510, 502]), ("recent", [10, 2])] {
        prices["source"][of]["grpc_statuses"] = json!({ "0": values[0], "14": values[1] });
        prices["source"][of]["request_messages"] = json!(values[0]);
        prices["source"][of]["response_messages"] = json!(4 * values[0]);
    }
    let mut catalog = edge(1, "workload/default/shop", "workload/default/catalog", "http", side(49, 2, 0.5));
    catalog["destination"] = side(49, 2, 0.4);
    let sampled = |code: &str, duration: f64, trace: u128| {
        json!({ "trace_id": format!("{trace:032x}"), "span_id": "00f067aa0ba902b7",
        "duration_ms": duration, "code": code, "at": 1_700_000_000 })
    };
    catalog["source"]["sampled"] = json!({ "slowest": sampled("200", 61.5, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        "failed": sampled("503", 1.25, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c) });
    let mut idle = side(7, 0, 1.0);
    idle.as_object_mut().unwrap().remove("recent");
    json!({
        "version": "1.2.3", "node": "node-1", "at": 1_700_000_000.5, "began": 1_699_990_000, "window_seconds": 10,
        "a_field_of_later_versions": { "is": ["ignored"] },
        "edges": [
            edge(0, "workload/default/catalog", "workload/default/stock", "http", side(32, 0, 0.3)),
            catalog, edge(2, "workload/default/stock", "workload/default/catalog", "http", side(4, 2, 0.3)), prices,
            edge(4, "workload/default/shop", "workload/default/ledger", "tcp", json!({ "totals": tcp, "recent": recent })),
            edge(5, "workload/bookinfo/reviews-v2-canary", "workload/default/shop", "http", idle),
            edge(6, "workload/default/gateway", "workload/staging/shop", "http", side(1, 0, 1_200.0)),
        ],
        "processes": [{ "app": "istio-proxy", "instance": "10.1.0.2", "pod": "shop-1", "namespace": "default", "cpu_cores": 0.012,
            "resident_bytes": 52_000_000, "open_files": 41, "threads": 6, "started": 1_699_990_000 }],
        "control_plane": {
            "instances": [{ "instance": "10.0.0.9:15014", "app": "istiod", "up": true, "scrape_seconds": 0.0123 }],
            "families": [
                { "name": "pilot_xds", "points": [{ "labels": { "instance": "a", "version": "1.25" }, "value": 2 },
                    { "labels": { "instance": "b", "version": "1.25" }, "value": 1 }] },
                { "name": "pilot_proxy_convergence_time", "points": [{ "labels": {}, "value": 120, "per_second": 0.5 }],
                    "at_most": { "p50": 0.1, "p99": 0.5 } },
            ],
        },
        "unseen": [
            { "name": "x", "help": "Messages that could not be parsed", "labels": { "reason": "bad_length" }, "value": 12, "per_second": 0.2 },
            { "name": "y", "help": "Callers that are not known", "labels": { "reason": "several" }, "value": 4 },
        ],
        "observer": { "cpu_cores": 0.0012, "resident_bytes": 12_300_000,
            "sidecars": [{ "labels": { "role": "sidecar" }, "value": 3 }, { "labels": { "role": "gateway" }, "value": 1 }] },
        "findings": [
            { "level": "error", "text": "istiod at 10.0.0.8:15014 cannot be scraped; the log has the reason, and this sentence is longer than a line of a terminal" },
            { "level": "note", "text": "good to know" },
        ],
    })
}

fn history() -> History {
    let columns: Vec<Value> = (0..60)
        .map(|number: u64| {
            let (requests, errors) = (100 + number * number % 170, if number.is_multiple_of(9) { 20 } else { 2 });
            json!({ "at": 1_699_999_700 + number * 5, "seconds": 5, "edges": [
                { "id": 1, "requests": requests, "errors": errors, "bytes": requests * 1_600, "connections": 0,
                  "latency": [[0, requests - 2], [number % 3 + 1, 2]] },
            ] })
        })
        .collect();
    let document =
        json!({ "step_seconds": 5, "max_columns": 60, "latency_bounds_ms": [0, 1, 2, 4, 8, 16], "columns": columns });
    History::parse(document.to_string().as_bytes()).unwrap()
}

fn parse(document: &Value) -> Document {
    Document::parse(document.to_string().as_bytes()).unwrap()
}

fn app_of(document: &Value) -> App {
    let options = Options {
        source: "http://127.0.0.1:9469".to_owned(),
        order: Order::by(Column::Rate),
        filter: String::new(),
        palette: Palette { is_coloured: true },
    };
    App::new(options, parse(document))
}

fn app() -> App {
    app_of(&node())
}

fn press(app: &mut App, keys: &str) {
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\u{1b}' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        assert_eq!(app.on_key(KeyEvent::new(code, KeyModifiers::NONE)), Flow::Continue, "{c:?}");
    }
}

fn drawn(app: &mut App, (width, height): (u16, u16)) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| app.draw(frame)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let line = |row: &[ratatui::buffer::Cell]| {
        row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n"
    };
    buffer.content().chunks(buffer.area.width.into()).map(line).collect()
}

fn screen(app: &mut App, size: (u16, u16)) -> String {
    text(&drawn(app, size))
}

#[track_caller]
fn is_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/screens").join(format!("{name}.txt"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} (UPDATE_GOLDEN=1 writes it anew)", path.display());
}

#[test]
fn the_table_fits_a_small_terminal_and_uses_a_large_one() {
    is_golden("table-80x24", &screen(&mut app(), SMALL));
    is_golden("table-130x32", &screen(&mut app(), LARGE));
}

#[test]
fn a_call_has_both_sides_codes_and_the_last_minutes() {
    let mut app = app();
    press(&mut app, "\n");
    assert_eq!(app.demand(), Demand { is_paused: false, wants_history: true });
    app.on_history(history());
    is_golden("call-80x24", &screen(&mut app, SMALL));
    is_golden("call-130x32", &screen(&mut app, LARGE));
    press(&mut app, "\u{1b}/prices\n\n");
    is_golden("call-grpc-80x24", &screen(&mut app, SMALL));
    press(&mut app, "\u{1b}\u{1b}/tcp\n\n");
    is_golden("call-tcp-80x24", &screen(&mut app, SMALL));
}

#[test]
fn the_rest_of_the_node_and_the_keys_are_shown() {
    let mut app = app();
    press(&mut app, "\t");
    is_golden("node-80x24", &screen(&mut app, SMALL));
    press(&mut app, "\u{1b}?");
    is_golden("help-80x24", &screen(&mut app, SMALL));
}

#[test]
fn once_prints_every_column() {
    is_golden("once", &page(parse(&node()), Order::by(Column::From), ""));
    let filtered = page(parse(&node()), Order::by(Column::Rate), "GRPC");
    assert!(filtered.contains("prices") && !filtered.contains("ledger"), "{filtered}");
}

/// Returns the first words of the rows.
fn callers(app: &mut App) -> Vec<String> {
    let screen = screen(app, LARGE);
    let rows = screen.lines().skip(3).take_while(|line| !line.is_empty());
    rows.map(|row| row.trim_start_matches([' ', '!']).split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn keys_sort_and_filter() {
    let mut app = app();
    assert_eq!(callers(&mut app)[..2], ["default/shop", "catalog"]);
    press(&mut app, "S");
    assert_eq!(callers(&mut app)[0], "reviews-v2-canary");
    press(&mut app, "s");
    assert_eq!(callers(&mut app)[0], "stock", "by errors, the largest share first");
    // Past the last column comes the first.
    press(&mut app, "sssssss");
    assert_eq!(callers(&mut app)[0], "catalog", "by the caller's name");
    press(&mut app, "/CANARY");
    assert_eq!(callers(&mut app), ["reviews-v2-canary"]);
    assert!(screen(&mut app, SMALL).contains("filter: CANARY"));
    press(&mut app, "\u{1b}");
    assert_eq!(callers(&mut app).len(), 7, "undone");
    press(&mut app, "/nobody\n");
    assert!(screen(&mut app, SMALL).contains("no call matches the filter"));
    press(&mut app, "\u{1b}");
    assert_eq!(callers(&mut app).len(), 7, "no filter");
}

#[test]
fn a_selection_stays_with_its_call() {
    let mut app = app();
    press(&mut app, "j");
    let selected = |app: &mut App| {
        let buffer = drawn(app, SMALL);
        let is_selected = |y: &u16| buffer[(5, *y)].modifier.contains(ratatui::style::Modifier::REVERSED);
        let y = (0..SMALL.1).find(is_selected).unwrap();
        (0..20).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim().to_owned()
    };
    assert!(selected(&mut app).starts_with("catalog"));
    press(&mut app, "S");
    assert!(selected(&mut app).starts_with("catalog"), "another order");
    let mut later = node();
    later["edges"].as_array_mut().unwrap().reverse();
    app.on_document(parse(&later));
    assert!(selected(&mut app).starts_with("catalog"), "another document");
    later["edges"].as_array_mut().unwrap().pop();
    press(&mut app, "\n");
    app.on_document(parse(&later));
    assert!(screen(&mut app, SMALL).contains("is not in the list any more"));
    press(&mut app, "\u{1b}");
    selected(&mut app);
}

#[test]
fn nothing_moves_while_paused() {
    let mut app = app();
    press(&mut app, "p");
    assert!(app.demand().is_paused);
    let mut later = node();
    later["at"] = json!(1_700_000_100);
    app.on_document(parse(&later));
    let paused = screen(&mut app, SMALL);
    assert!(paused.contains("PAUSED 22:13:20 UTC"), "{paused}");
    press(&mut app, " ");
    app.on_document(parse(&later));
    assert!(screen(&mut app, SMALL).contains("live 22:15:00 UTC"));
}

#[test]
fn a_lost_observer_is_shown_with_the_first_time_and_the_last_reason() {
    let mut app = app();
    app.on_lost(1_700_000_001.0, "refused");
    app.on_lost(1_700_000_009.0, "no answer\u{1b}[2J");
    let lost = screen(&mut app, SMALL);
    assert!(lost.contains("not reachable since 22:13:21 UTC") && lost.contains("no answer�[2J"), "{lost}");
    assert!(lost.contains("catalog"), "what was read last stays");
    app.on_document(parse(&node()));
    assert!(screen(&mut app, SMALL).contains("live"));
}

#[test]
fn quit_and_control_c_end_it() {
    let quits = |code, modifiers| app().on_key(KeyEvent::new(code, modifiers)) == Flow::Quit;
    assert!(quits(KeyCode::Char('q'), KeyModifiers::NONE));
    assert!(quits(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(!quits(KeyCode::Char('c'), KeyModifiers::NONE));
    let mut filtering = app();
    press(&mut filtering, "/q");
    assert!(screen(&mut filtering, SMALL).contains("filter: q"), "a letter of the filter");
}

#[test]
fn without_colours_there_are_none() {
    let options = Options {
        source: String::new(),
        order: Order::by(Column::Rate),
        filter: String::new(),
        palette: Palette { is_coloured: false },
    };
    let mut plain = App::new(options, parse(&node()));
    let colours = |app: &mut App| {
        drawn(app, SMALL).content().iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    press(&mut plain, "\n");
    plain.on_history(history());
    assert_eq!(colours(&mut plain), 0);
    press(&mut plain, "\u{1b}");
    assert_eq!(colours(&mut plain), 0);
    assert!(colours(&mut app()) > 0);
}

#[test]
fn what_is_not_a_document_is_refused() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "<html>",
        r#"{"version":"1","node":"n","at":1}"#,
        r#"{"version":1,"node":"n","at":1,"edges":[]}"#,
    ] {
        assert!(Document::parse(text.as_bytes()).is_err(), "{text}");
    }
    // A number of letters that is small in JSON is small in memory.
    let many = format!(r#"{{"version":"1","node":"n","at":1,"edges":[],"findings":[{}{{}}]}}"#, "{},".repeat(100_000));
    assert!(format!("{:?}", Document::parse(many.as_bytes()).unwrap()).len() < 100_000);
}

fn hostile_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "\u{1b}\\[[0-9;]{0,3}[A-Za-z]x{0,300}",
        "workload/\\PC{0,3}/[日本a\u{301}\u{202e}\u{9b}]{0,90}"
    ]
}

fn hostile_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(f64::MAX),
        Just(f64::MIN),
        Just(f64::MIN_POSITIVE),
        any::<f64>().prop_filter("JSON has none", |x| x.is_finite())
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_a_server_sends_commands_no_terminal(
        texts in prop::collection::vec(hostile_text(), 8),
        numbers in prop::collection::vec(hostile_number(), 8),
        size in (1..220_u16, 1..70_u16),
        keys in "[\tsSpjkgG/aq\n]{0,6}",
    ) {
        let mut document = node();
        document["node"] = json!(texts[0]);
        document["at"] = json!(numbers[0]);
        for (edge, (text, number)) in document["edges"].as_array_mut().unwrap().iter_mut().zip(texts.iter().zip(&numbers)) {
            edge["from"] = json!(text);
            edge["to"] = json!(format!("workload/{text}/{text}"));
            edge["protocol"] = json!(if *number > 0.0 { "http" } else { text });
            edge["services"] = json!([text, text]);
            for of in ["totals", "recent"] {
                edge["source"][of] = json!({ "requests": number, "errors": numbers[1], "opened": number, "codes": { text: number },
                    "grpc_statuses": { text: number }, "latency_ms": { "p50": number, "p99": numbers[2] } });
            }
        }
        for (place, key) in [("findings", "text"), ("findings", "level"), ("unseen", "help"), ("processes", "pod")] {
            document[place][0][key] = json!(texts[1]);
        }
        document["unseen"][0]["labels"] = json!({ &texts[2]: &texts[3] });
        document["control_plane"]["families"][0]["name"] = json!(texts[4]);
        document["processes"][0]["started"] = json!(numbers[3]);
        let once = page(parse(&document), Order::by(Column::P99), "");
        prop_assert!(!once.contains(|c: char| c.is_control() && c != '\n'), "{once:?}");
        let mut app = app_of(&document);
        app.on_history(history());
        for key in keys.chars() {
            let code = match key { '\n' => KeyCode::Enter, '\t' => KeyCode::Tab, c => KeyCode::Char(c) };
            app.on_key(KeyEvent::new(code, KeyModifiers::NONE));
            let buffer = drawn(&mut app, size);
            prop_assert!(buffer.content().iter().all(|cell| !cell.symbol().contains(char::is_control)));
        }
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused(text in "[\\[\\]{}:,\"0-9a-z.e-]{0,200}") {
        let _ = (Document::parse(text.as_bytes()), History::parse(text.as_bytes()));
    }
}
