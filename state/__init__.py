"""What a checkpoint *is* (`datablock`, `sections`), where it is kept (`store`), and what controller and agents share to
speak of it (`messages`, `configuration`, `errors`)."""
