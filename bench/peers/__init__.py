"""What else do people use today? One worker file per contestant; `registry` names them."""
