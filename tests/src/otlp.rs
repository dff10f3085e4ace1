//! What OTLP requests hold, as samples of the exposition that they are compared with.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{metric::Data, number_data_point},
};

use crate::exposition::Exposition;

/// Name and labels of a sample, and its value.
pub type Samples = BTreeMap<(String, Labels), f64>;
type Labels = BTreeMap<String, String>;

/// Stores the last value of each series; returns the attributes of the last resource.
pub fn store(request: ExportMetricsServiceRequest, samples: &mut Samples) -> Result<Labels> {
    let mut resource = Labels::new();
    for own in request.resource_metrics {
        resource = labels(&own.resource.context("no resource")?.attributes, None);
        for metric in own.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            store_metric(&metric.name, metric.data.context("no data")?, samples)?;
        }
    }
    Ok(resource)
}

/// Returns those of one scraped instance.
pub fn of_instance(samples: &Samples, instance: &str) -> Samples {
    let is_scraped = |(name, labels): &(String, Labels)| {
        labels.get("instance").is_some_and(|own| own == instance) && !name.starts_with("mesh_observer_")
    };
    samples.iter().filter(|(sample, _)| is_scraped(sample)).map(|(sample, value)| (sample.clone(), *value)).collect()
}

/// Returns the samples of an instance's page as they are sent: without empty labels, bounds as numbers.
pub fn exposed(page: &Exposition, instance: &str) -> Result<Samples> {
    let is_scraped = |name: &str, own: &str| own == instance && !name.starts_with("mesh_observer_");
    let own = page.all().iter().filter(|sample| is_scraped(&sample.name, sample.label("instance")));
    own.map(|sample| {
        let labels = sample.labels.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| {
            let is_number = matches!(name.as_str(), "le" | "quantile");
            let value =
                if is_number { value.replace("+Inf", "inf").parse::<f64>()?.to_string() } else { value.clone() };
            Ok((name.clone(), value))
        });
        Ok(((sample.name.clone(), labels.collect::<Result<_>>()?), sample.value))
    })
    .collect()
}

#[expect(clippy::cast_precision_loss, reason = "as the page is read")]
fn store_metric(name: &str, data: Data, samples: &mut Samples) -> Result<()> {
    let points = match data {
        Data::Gauge(data) => data.data_points,
        Data::Sum(data) => data.data_points,
        Data::Histogram(data) => {
            for own in data.data_points {
                let mut upto = 0;
                for (count, bound) in own.bucket_counts.iter().zip(own.explicit_bounds.iter().chain(&[f64::INFINITY])) {
                    upto += count;
                    let labels = labels(&own.attributes, Some(("le", *bound)));
                    samples.insert((format!("{name}_bucket"), labels), upto as f64);
                }
                samples.insert((format!("{name}_count"), labels(&own.attributes, None)), own.count as f64);
                samples.insert((format!("{name}_sum"), labels(&own.attributes, None)), own.sum.context("no sum")?);
            }
            return Ok(());
        }
        Data::Summary(data) => {
            for own in data.data_points {
                for value in &own.quantile_values {
                    let labels = labels(&own.attributes, Some(("quantile", value.quantile)));
                    samples.insert((name.to_owned(), labels), value.value);
                }
                samples.insert((format!("{name}_count"), labels(&own.attributes, None)), own.count as f64);
                samples.insert((format!("{name}_sum"), labels(&own.attributes, None)), own.sum);
            }
            return Ok(());
        }
        Data::ExponentialHistogram(_) => bail!("{name} is exponential"),
    };
    for own in points {
        let value = match own.value.context("no value")? {
            number_data_point::Value::AsDouble(value) => value,
            number_data_point::Value::AsInt(value) => value as f64,
        };
        samples.insert((name.to_owned(), labels(&own.attributes, None)), value);
    }
    Ok(())
}

fn labels(attributes: &[KeyValue], number: Option<(&str, f64)>) -> BTreeMap<String, String> {
    let text = |own: &KeyValue| match own.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    let labels = attributes.iter().map(|own| (own.key.clone(), text(own)));
    labels.chain(number.map(|(name, value)| (name.to_owned(), value.to_string()))).collect()
}
