#[test]
fn adds() {
    assert!(true);
}
