//! `/api/v1/history`: the last minutes of one edge.

use serde::Deserialize;

use crate::bounded;

/// Columns of some seconds, the oldest first.
#[derive(Debug, Deserialize)]
pub struct History {
    #[serde(default, deserialize_with = "bounded::list::<_, _, 128>")]
    latency_bounds_ms: Vec<f64>,
    #[serde(deserialize_with = "bounded::list::<_, _, 120>")]
    columns: Vec<Column>,
}

#[derive(Debug, Deserialize)]
struct Column {
    seconds: f64,
    #[serde(default, deserialize_with = "bounded::list::<_, _, 2_000>")]
    edges: Vec<EdgeColumn>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct EdgeColumn {
    id: u32,
    requests: f64,
    errors: f64,
    bytes: f64,
    connections: f64,
    /// Rows, and the number of requests in each.
    #[serde(deserialize_with = "bounded::list::<_, _, 128>")]
    latency: Vec<(usize, f64)>,
}

/// What is known of an edge in each column; 0 where it did not move.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Course {
    /// Time that the columns cover.
    pub(crate) seconds: f64,
    /// Per second: requests, or opened connections where there are none.
    pub(crate) rate: Vec<f64>,
    /// Share of failed requests.
    pub(crate) errors: Vec<f64>,
    /// Bytes per second of both directions.
    pub(crate) bytes: Vec<f64>,
    /// Milliseconds at or below which 99 % of the durations lie.
    pub(crate) p99: Vec<f64>,
}

impl History {
    /// Reads a document.
    ///
    /// # Errors
    /// It is not one of an observer.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    pub(crate) fn course(&self, edge: u32) -> Course {
        let mut course = Course::default();
        for Column { seconds, edges, .. } in self.columns.iter().filter(|column| column.seconds > 0.0) {
            let own = edges.iter().find(|own| own.id == edge).cloned().unwrap_or_default();
            course.seconds += seconds;
            course.rate.push((own.requests + own.connections) / seconds);
            course.errors.push(if own.requests > 0.0 { own.errors / own.requests } else { 0.0 });
            course.bytes.push(own.bytes / seconds);
            course.p99.push(self.p99(&own.latency));
        }
        course
    }

    /// Returns the upper bound of the row that the 99th percentile lies in.
    fn p99(&self, latency: &[(usize, f64)]) -> f64 {
        let all: f64 = latency.iter().map(|(_, count)| count).sum();
        let mut below = 0.0;
        let row = latency.iter().find(|(_, count)| {
            below += count;
            below >= 0.99 * all
        });
        row.and_then(|(row, _)| self.latency_bounds_ms.get(row.saturating_add(1))).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_has_a_value_per_column() {
        let history = History::parse(
            br#"{"step_seconds":5,"max_columns":60,"latency_bounds_ms":[0,1,2,4],"columns":[
                {"at":5,"seconds":5,"edges":[{"id":7,"requests":10,"errors":5,"bytes":50,"connections":0,"latency":[[0,9],[2,1]]}]},
                {"at":10,"seconds":5,"edges":[{"id":8,"requests":1,"errors":0,"bytes":1,"connections":0,"latency":[]}]}]}"#,
        )
        .unwrap();
        let expected = Course {
            seconds: 10.0,
            rate: vec![2.0, 0.0],
            errors: vec![0.5, 0.0],
            bytes: vec![10.0, 0.0],
            p99: vec![4.0, 0.0],
        };
        assert_eq!(history.course(7), expected);
    }

    #[test]
    fn a_row_beyond_the_bounds_is_nothing() {
        let text = format!(
            r#"{{"columns":[{{"at":1,"seconds":1,"edges":[{{"id":1,"requests":1,"latency":[[{},1]]}}]}}]}}"#,
            usize::MAX
        );
        assert_eq!(History::parse(text.as_bytes()).unwrap().course(1).p99, [0.0]);
    }
}
