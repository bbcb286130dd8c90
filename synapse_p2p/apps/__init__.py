"""Programs. They only gather what the packages offer; nothing imports them."""
