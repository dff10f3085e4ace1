//! Dashboards as Grafana 10 to 12 imports them.
//!
//! Plain JSON: Grafana's foundation SDK has no edition for Rust, where the names of the families are.

use serde_json::{Value, json};

use crate::{
    board::{Board, Choice, Colour, Kind, Panel, Row, Shown, Target, Unit, Variable, WIDTH},
    query::{STEP, WHOLE},
};

/// Version of the format: Grafana 10.2 and later write 39 and read what is older than theirs.
const SCHEMA: u32 = 39;
/// Colours of Okabe and Ito, which differ for every kind of colour vision; black and yellow are left out.
const PALETTE: [&str; 6] = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00"];

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Fine => PALETTE[0],
            Self::Warning => PALETTE[3],
            Self::Bad => PALETTE[5],
        }
    }
}

impl Unit {
    const fn id(self) -> &'static str {
        match self {
            Self::Number | Self::Cores => "short",
            Self::PerSecond => "cps",
            Self::Requests => "reqps",
            Self::Messages => "mps",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "Bps",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Share => "percentunit",
        }
    }
}

/// Returns the file's text.
pub(crate) fn dashboard(board: &Board) -> String {
    let mut layout = Layout::default();
    let panels: Vec<_> = board.rows.iter().enumerate().flat_map(|(at, row)| layout.row(row, at == 0)).collect();
    let variables: Vec<_> = [datasource()].into_iter().chain(board.variables.iter().map(variable)).collect();
    let dashboard = json!({
        "id": null,
        "uid": format!("mesh-observer-{}", board.id.trim_start_matches("mesh-")),
        "title": board.title,
        "description": board.description,
        "tags": ["istio", "mesh-observer"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "annotations": {"list": [{
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": true,
            "hide": true,
            "iconColor": "rgba(0, 211, 255, 1)",
            "name": "Annotations & Alerts",
            "type": "dashboard",
        }]},
        "links": [{
            "title": "Mesh",
            "type": "dashboards",
            "tags": ["mesh-observer"],
            "asDropdown": true,
            "includeVars": false,
            "keepTime": true,
            "targetBlank": false,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }],
        "templating": {"list": variables},
        "panels": panels,
    });
    format!("{dashboard:#}\n")
}

/// Places panels from left to right, and gives each its number.
#[derive(Default)]
struct Layout {
    last: u32,
    y: u32,
}

impl Layout {
    /// Returns the row's heading and, beside it, its panels if it is open.
    fn row(&mut self, row: &Row, is_open: bool) -> Vec<Value> {
        let heading = (self.number(), self.y);
        self.y += 1;
        let below = self.y;
        let panels = self.panels(&row.panels);
        // A collapsed row takes the place of its heading alone.
        if !is_open {
            self.y = below;
        }
        let (beside, inside) = if is_open { (panels, Vec::new()) } else { (Vec::new(), panels) };
        let heading = json!({
            "id": heading.0,
            "type": "row",
            "title": row.title,
            "collapsed": !is_open,
            "gridPos": {"x": 0, "y": heading.1, "w": WIDTH, "h": 1},
            "panels": inside,
        });
        [heading].into_iter().chain(beside).collect()
    }

    fn panels(&mut self, panels: &[Panel]) -> Vec<Value> {
        let (mut x, mut tallest) = (0, 0);
        let mut placed = Vec::new();
        for panel in panels {
            let (width, height) = panel.size;
            if x + width > WIDTH {
                (x, self.y, tallest) = (0, self.y + tallest, 0);
            }
            let place = json!({"x": x, "y": self.y, "w": width, "h": height});
            placed.push(self.panel(panel, &place));
            x += width;
            tallest = tallest.max(u32::from(height));
        }
        self.y += tallest;
        placed
    }

    fn panel(&mut self, panel: &Panel, place: &Value) -> Value {
        let mut json = json!({
            "id": self.number(),
            "type": kind(panel.kind),
            "title": panel.title,
            "description": panel.description(),
            "datasource": source(),
            "gridPos": place,
            "fieldConfig": {"defaults": defaults(panel), "overrides": overrides(panel)},
            "options": options(panel),
            "targets": targets(panel),
        });
        if panel.kind == Kind::Table {
            json["transformations"] = transformations(panel);
        }
        json
    }

    fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Number => "stat",
        Kind::Lines | Kind::Areas => "timeseries",
        Kind::Bars => "bargauge",
        Kind::Heatmap => "heatmap",
        Kind::Table => "table",
    }
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn defaults(panel: &Panel) -> Value {
    let marks = if panel.thresholds.is_empty() { &[(0.0, Colour::Fine)] } else { panel.thresholds };
    // The first colour is that of everything below the second.
    let from = |at: usize, value: f64| if at == 0 { Value::Null } else { json!(value) };
    let steps: Vec<_> = marks
        .iter()
        .enumerate()
        .map(|(at, (value, colour))| json!({"color": colour.code(), "value": from(at, *value)}))
        .collect();
    let is_marked = !panel.thresholds.is_empty();
    let colour = match panel.kind {
        Kind::Number | Kind::Bars => "thresholds",
        _ => "palette-classic",
    };
    let mut defaults = json!({
        "unit": panel.unit.id(),
        "color": {"mode": colour},
        "thresholds": {"mode": "absolute", "steps": steps},
    });
    let style = |fill: u32, stacking: &str| {
        json!({
            "drawStyle": "line",
            "axisSoftMin": 0,
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": fill,
            "showPoints": "auto",
            "spanNulls": false,
            "stacking": {"mode": stacking, "group": "A"},
            "thresholdsStyle": {"mode": if is_marked { "dashed" } else { "off" }},
        })
    };
    match panel.kind {
        Kind::Lines => defaults["custom"] = style(0, "none"),
        Kind::Areas => defaults["custom"] = style(30, "normal"),
        Kind::Table => defaults["custom"] = json!({"align": "auto", "filterable": true, "inspect": false}),
        Kind::Number | Kind::Bars | Kind::Heatmap => {}
    }
    defaults
}

/// Gives single lines colours of their own, and columns their units.
fn overrides(panel: &Panel) -> Value {
    let is_single = |target: &Target| target.query.labels().is_empty();
    match panel.kind {
        Kind::Lines if panel.targets.len() > 1 && panel.targets.iter().all(is_single) => panel
            .targets
            .iter()
            .zip(PALETTE)
            .map(|(target, colour)| {
                json!({
                    "matcher": {"id": "byName", "options": target.name},
                    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
                })
            })
            .collect(),
        Kind::Table => panel
            .targets
            .iter()
            .map(|target| {
                json!({
                    "matcher": {"id": "byName", "options": target.name},
                    "properties": [{"id": "unit", "value": target.unit.id()}],
                })
            })
            .collect(),
        _ => json!([]),
    }
}

fn options(panel: &Panel) -> Value {
    let last = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
    match panel.kind {
        Kind::Number => json!({
            "reduceOptions": last,
            "colorMode": if panel.thresholds.is_empty() { "none" } else { "value" },
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "wideLayout": true,
            "showPercentChange": false,
            "percentChangeColorMode": "standard",
        }),
        Kind::Bars => json!({
            "reduceOptions": last,
            "displayMode": "basic",
            "orientation": "horizontal",
            "showUnfilled": true,
            "valueMode": "color",
            "namePlacement": "auto",
            "sizing": "auto",
            "minVizWidth": 8,
            "minVizHeight": 16,
            "maxVizHeight": 300,
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": false},
        }),
        Kind::Lines | Kind::Areas => json!({
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["mean", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
        Kind::Heatmap => json!({
            "calculate": false,
            "cellGap": 1,
            "cellValues": {"unit": Unit::PerSecond.id()},
            "color": {
                "mode": "scheme",
                "scheme": "Viridis",
                "fill": PALETTE[0],
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": false,
            },
            "exemplars": {"color": PALETTE[5]},
            "filterValues": {"le": 1e-9},
            "legend": {"show": true},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": false},
            "yAxis": {"axisPlacement": "left", "reverse": false, "unit": panel.unit.id()},
        }),
        Kind::Table => json!({
            "cellHeight": "sm",
            "showHeader": true,
            "frameIndex": 0,
            "footer": {"show": false, "reducer": ["sum"], "countRows": false, "fields": ""},
            "sortBy": [{"displayName": panel.targets[0].name, "desc": true}],
        }),
    }
}

fn targets(panel: &Panel) -> Vec<Value> {
    let is_table = panel.kind == Kind::Table;
    let window = if is_table { WHOLE } else { STEP };
    ('A'..)
        .zip(&panel.targets)
        .map(|(reference, target)| {
            json!({
                "refId": reference.to_string(),
                "datasource": source(),
                "editorMode": "code",
                "expr": target.query.promql(window),
                "legendFormat": legend(panel, target),
                "format": match panel.kind {
                    Kind::Table => "table",
                    Kind::Heatmap => "heatmap",
                    _ => "time_series",
                },
                "instant": is_table,
                "range": !is_table,
                "exemplar": panel.exemplars,
            })
        })
        .collect()
}

fn legend(panel: &Panel, target: &Target) -> String {
    if panel.kind == Kind::Heatmap {
        return "{{le}}".to_owned();
    }
    let labels: Vec<_> = target.query.labels().iter().map(|label| format!("{{{{{label}}}}}")).collect();
    let legend = format!("{} {}", target.name, labels.join(" "));
    let legend = legend.trim();
    if legend.is_empty() { panel.title.to_owned() } else { legend.to_owned() }
}

/// Joins the queries by their labels, and names the columns.
fn transformations(panel: &Panel) -> Value {
    let is_single = panel.targets.len() == 1;
    let value = |reference: char| if is_single { "Value".to_owned() } else { format!("Value #{reference}") };
    let columns = ('A'..).zip(&panel.targets).map(|(reference, target)| (value(reference), json!(target.name)));
    let names: serde_json::Map<_, _> = columns.collect();
    json!([
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": names}},
    ])
}

fn datasource() -> Value {
    json!({
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "current": {},
        "options": [],
        "hide": 0,
        "includeAll": false,
        "multi": false,
        "refresh": 1,
        "skipUrlSync": false,
    })
}

fn variable(variable: &Variable) -> Value {
    let Variable { name, label, choice } = variable;
    match choice {
        Choice::Values(of, families, matches, shown) => {
            let names: Vec<_> = families.iter().map(|family| family.prometheus_name).collect();
            let matches: String = matches.iter().map(|own| format!(", {}", own.promql())).collect();
            let query = format!("label_values({{__name__=~\"{}\"{matches}}}, {of})", names.join("|"));
            let (pattern, all) = match shown {
                Shown::All => (String::new(), ".*".to_owned()),
                Shown::Containing(text) => (format!("/{text}/"), format!(".*{text}.*")),
            };
            json!({
                "name": name,
                "label": label,
                "type": "query",
                "datasource": source(),
                "definition": query,
                "query": {"qryType": 5, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
                "regex": pattern,
                "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
                "options": [],
                "hide": 0,
                "includeAll": true,
                "allValue": all,
                "multi": true,
                "refresh": 2,
                "sort": 1,
                "skipUrlSync": false,
            })
        }
        Choice::One(values) => {
            let option =
                |at: usize, text: &str, value: &str| json!({"selected": at == 0, "text": text, "value": value});
            let options: Vec<_> =
                values.iter().enumerate().map(|(at, (text, value))| option(at, text, value)).collect();
            let query: Vec<_> = values.iter().map(|(text, value)| format!("{text} : {value}")).collect();
            json!({
                "name": name,
                "label": label,
                "type": "custom",
                "query": query.join(", "),
                "current": options[0],
                "options": options,
                "hide": 0,
                "includeAll": false,
                "multi": false,
                "skipUrlSync": false,
            })
        }
    }
}
