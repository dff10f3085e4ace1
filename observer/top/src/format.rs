//! Numbers and times as people read them, in few characters. What is not known is a dash.

/// Stands for what is not known.
pub(crate) const NONE: &str = "-";

/// Prefixes of units, and what they stand for.
const LARGE: [(&str, f64); 6] = [("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)];

/// Returns a whole number exactly while it is below a billion.
pub(crate) fn count(value: f64) -> String {
    if value.fract() == 0.0 && (0.0..1e9).contains(&value) { grouped(value) } else { short(value) }
}

/// Returns three significant digits, in at most six characters.
pub(crate) fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        ..0.001 => if value > 0.0 { "<0.001" } else { "<0" }.to_owned(),
        ..99_999.5 => digits(value),
        _ => scaled(value),
    }
}

/// Returns a share of 1 in percent.
pub(crate) fn percent(value: f64) -> String {
    if value > 0.0 && value < 0.0001 { "<0.01 %".to_owned() } else { format!("{} %", short(value * 100.0)) }
}

pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        1_000.0.. => format!("{} s", short(value / 1_000.0)),
        0.0.. if value < 0.001 => "<1 µs".to_owned(),
        _ => format!("{} ms", short(value)),
    }
}

pub(crate) fn bytes(value: f64) -> String {
    let (prefix, unit) = LARGE.into_iter().find(|(_, unit)| value >= *unit).unwrap_or(("", 1.0));
    format!("{} {prefix}B", short(value / unit))
}

pub(crate) fn duration(seconds: f64) -> String {
    let (length, unit) = match seconds {
        ..120.0 => (1.0, "s"),
        ..7_200.0 => (60.0, "min"),
        ..172_800.0 => (3_600.0, "h"),
        _ => (86_400.0, "d"),
    };
    format!("{} {unit}", short((seconds.max(0.0) / length).round()))
}

/// Returns the time of the day in UTC.
pub(crate) fn clock(unix_seconds: f64) -> String {
    let second = unix_seconds.rem_euclid(86_400.0).floor();
    let (hour, minute) = ((second / 3_600.0).floor(), (second / 60.0).floor() % 60.0);
    format!("{hour:02}:{minute:02}:{:02} UTC", second % 60.0)
}

/// Returns what is known, or a dash.
pub(crate) fn known(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), format)
}

fn digits(value: f64) -> String {
    let decimals = match value {
        1.0.. if value >= 99.95 => return grouped(value.round()),
        9.995.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Returns digits in groups of three.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn scaled(value: f64) -> String {
    match LARGE.into_iter().find(|(_, unit)| value >= *unit) {
        Some((prefix, unit)) if value < 1e21 => format!("{}{prefix}", digits(value / unit)),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.0004, "<0.001"),
            (0.0123, "0.012"),
            (1.234, "1.23"),
            (2.0, "2"),
            (49.13, "49.1"),
            (99.96, "100"),
            (12_345.6, "12,346"),
            (123_456.0, "123k"),
            (9.87e12, "9.87T"),
            (1e300, "1e300"),
            (-1.0, "<0"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn units_follow_the_size() {
        assert_eq!([0.0004, 0.5, 86.24, 1_500.0].map(milliseconds), ["<1 µs", "0.5 ms", "86.2 ms", "1.5 s"]);
        assert_eq!([0.0, 999.0, 8_400.0, 1.2e6].map(bytes), ["0 B", "999 B", "8.4 kB", "1.2 MB"]);
        assert_eq!([0.0, 0.000_01, 0.036, 1.0].map(percent), ["0 %", "<0.01 %", "3.6 %", "100 %"]);
        assert_eq!([5.0, 600.0, 90_000.0, 1e6].map(duration), ["5 s", "10 min", "25 h", "12 d"]);
        assert_eq!([count(1_234_567.0), count(3e9), count(0.5)], ["1,234,567", "3G", "0.5"]);
        assert_eq!(clock(86_400.0 + 3_725.9), "01:02:05 UTC");
        assert_eq!(known(None, bytes), NONE);
    }

    #[test]
    fn nothing_is_long() {
        for exponent in -320..=308 {
            let value = 10_f64.powi(exponent) * 9.996;
            assert!(short(value).chars().count() <= 6, "{}", short(value));
            assert!(count(value).len() <= 11, "{}", count(value));
        }
    }
}
