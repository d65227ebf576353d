#[cfg(test)]
mod tests {
    other_crate::make_tests!(u8);
}
