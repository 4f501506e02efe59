"""What a layer costs and loses at every size, and sizes for several layers under one budget."""
