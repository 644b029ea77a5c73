//! Medians and their company.

/// The value below which `part` of the values lie (nearest rank); 0 of none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of values")]
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The same of values with how often each occurs, in ascending order.
pub(crate) fn quantile_of_counted(values: &[(f64, u64)], part: f64) -> f64 {
    let all: u64 = values.iter().map(|(_, count)| count).sum();
    let rank = part * all as f64;
    let mut seen = 0;
    for (value, count) in values {
        seen += count;
        if seen as f64 >= rank {
            return *value;
        }
    }
    0.0
}

/// The middle value, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quantiles() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((quantile(&[3.0, 1.0, 2.0], 1.0) - 3.0).abs() < 1e-9);
        assert!((quantile(&[3.0, 1.0, 2.0], 0.01) - 1.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        let counted = [(1.0, 98), (2.0, 1), (3.0, 1)];
        let quantiles = [0.5, 0.99, 1.0].map(|part| quantile_of_counted(&counted, part));
        assert_eq!(quantiles.map(f64::to_bits), [1.0, 2.0, 3.0].map(f64::to_bits));
        assert!(quantile_of_counted(&[], 0.5).abs() < 1e-9);
    }
}
